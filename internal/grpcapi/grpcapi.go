// Package grpcapi is containerd's gRPC API, one file for each service. A method
// converts the request to objects, calls an engine once, and converts the
// result back; what there is to know about the work itself is in the engines.
//
// Methods return errdefs kinds. The interceptors (interceptors.go) map them to
// statuses, and are the only ones to read a call's metadata: methods take
// namespace and lease from ScopeOf.
//
// Events are published by the engine that made the change, not here.
package grpcapi
