"""One behaviour over two transports: each test runs over gRPC and over REST and may not see a difference."""
