package grpcapi

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/metadata"
)

// Metadata keys that clients set on a call.
const (
	namespaceHeader = "containerd-namespace"
	leaseHeader     = "containerd-lease"
)

// Scope is on whose behalf a call is made. The interceptors take it from the
// call's metadata; methods get it from ScopeOf and pass it on as parameters.
type Scope struct {
	// Namespace is valid, or empty for the methods that need none.
	Namespace string
	// Lease holds what the call writes; empty for none.
	Lease string
}

type scopeKey struct{}

// ScopeOf returns the scope that the interceptors put into ctx.
func ScopeOf(ctx context.Context) Scope {
	s, _ := ctx.Value(scopeKey{}).(Scope)
	return s
}

func withScope(ctx context.Context, s Scope) context.Context {
	return context.WithValue(ctx, scopeKey{}, s)
}

// scopeFromMetadata reads the scope of a call to a gRPC method.
// errdefs.ErrFailedPrecondition when the method needs a namespace and there is
// none, errdefs.ErrInvalidArgument when it is malformed.
func scopeFromMetadata(ctx context.Context, method string) (Scope, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	scope := Scope{Namespace: first(md, namespaceHeader), Lease: first(md, leaseHeader)}
	if worksWithoutNamespace(method) {
		return scope, nil
	}
	if scope.Namespace == "" {
		return Scope{}, fmt.Errorf("namespace is required: %w", errdefs.ErrFailedPrecondition)
	}
	if err := checkNamespace(scope.Namespace); err != nil {
		return Scope{}, err
	}
	return scope, nil
}

func first(md metadata.MD, key string) string {
	if values := md[key]; len(values) > 0 {
		return values[0]
	}
	return ""
}

// maxIdentifier bounds identifiers, as it does in containerd.
const maxIdentifier = 76

var identifier = regexp.MustCompile(`^[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*$`)

func checkNamespace(name string) error {
	if len(name) > maxIdentifier {
		return fmt.Errorf("namespace validation: identifier %q greater than maximum length (%d characters): %w", name, maxIdentifier, errdefs.ErrInvalidArgument)
	}
	if !identifier.MatchString(name) {
		return fmt.Errorf("namespace validation: identifier %q must match %s: %w", name, identifier, errdefs.ErrInvalidArgument)
	}
	return nil
}

// worksWithoutNamespace tells the methods that are about the daemon as a whole
// (or name the namespace in the request) from those that act in a namespace.
func worksWithoutNamespace(method string) bool {
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	switch service {
	case "containerd.services.namespaces.v1.Namespaces",
		"containerd.services.version.v1.Version",
		"containerd.services.introspection.v1.Introspection",
		"containerd.services.streaming.v1.Streaming",
		"grpc.health.v1.Health":
		return true
	case "containerd.services.events.v1.Events":
		return name != "Publish"
	default:
		return strings.HasPrefix(service, "runtime.v1.")
	}
}
