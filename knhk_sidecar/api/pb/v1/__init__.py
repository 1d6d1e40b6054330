"""The generated modules of knhk.sidecar.v1, as protoc wrote them."""
