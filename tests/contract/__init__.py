"""The public contract: what its descriptors promise, and that the generated code is what the .proto files say."""
