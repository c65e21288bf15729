package daemon

import (
	"context"
	"slices"
	"strings"

	"berth/internal/grpcapi"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const grpcPlugin = "io.containerd.grpc.v1"

// serviceOf names the gRPC service of a plugin of the type io.containerd.grpc.v1.
func serviceOf(id string) string {
	const prefix = "containerd.services."
	switch id {
	case "healthcheck":
		return "grpc.health.v1.Health"
	case "sandboxes":
		return prefix + "sandbox.v1.Store"
	case "sandbox-controllers":
		return prefix + "sandbox.v1.Controller"
	}
	return prefix + id + ".v1." + strings.ToUpper(id[:1]) + id[1:]
}

// disabledServices are the gRPC services whose plugins are disabled: of the
// service itself, or of the local one that it is for.
func (d *Daemon) disabledServices() []string {
	var out []string
	for _, p := range services() {
		if p.Type == grpcPlugin && (d.cfg.Disabled(p.Type+"."+p.ID) || d.cfg.Disabled("io.containerd.service.v1."+p.ID+"-service")) {
			out = append(out, serviceOf(p.ID))
		}
	}
	return out
}

// enabled leaves out the disabled ones.
func (d *Daemon) enabled(ps []grpcapi.Plugin) []grpcapi.Plugin {
	off := d.disabledServices()
	return slices.DeleteFunc(ps, func(p grpcapi.Plugin) bool {
		if p.Type == grpcPlugin && slices.Contains(off, serviceOf(p.ID)) || d.cfg.Disabled(p.Type+"."+p.ID) {
			d.log.Info("disabled by the configuration", "plugin", p.Type+"."+p.ID)
			return true
		}
		return false
	})
}

// refuseDisabled answers calls of disabled services as a server does that does
// not have them.
func refuseDisabled(services []string) []grpc.ServerOption {
	if len(services) == 0 {
		return nil
	}
	check := func(method string) error {
		service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
		if slices.Contains(services, service) {
			return status.Errorf(codes.Unimplemented, "unknown service %s", service)
		}
		return nil
	}
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := check(info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := check(info.FullMethod); err != nil {
				return err
			}
			return next(srv, s)
		}),
	}
}
