"""REST: the contract's operations as HTTP and JSON.

Nothing here knows a single operation. Routes, fields and the OpenAPI document are read from the descriptors of the
contract (`google.api.http`), a request becomes the same protobuf message that gRPC would have received, and both enter
the same pipeline. Particular bodies (a bare workflow document, variables that are not strings) are named in one table,
`bodies`.

    canonical   JSON text <-> protobuf message
    routes      HTTP method and path -> operation
    bodies      the few bodies that are friendlier than the contract demands
    events      server streams as server-sent events or downloads
    openapi     the description of all of it
    surface     the ASGI application
    server      the HTTP server in the daemon's loop

Import the module that you need; the package itself imports nothing, so that its JSON costs the command line no HTTP
server.
"""
