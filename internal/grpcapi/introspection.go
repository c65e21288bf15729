package grpcapi

import (
	"context"
	"fmt"
	"os"

	"berth/internal/filter"
	"berth/internal/task"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Plugin is a part of the daemon as introspection reports it: under the type
// and ID that the part has in containerd.
type Plugin struct {
	Type, ID     string
	Requires     []string
	Platforms    []ispec.Platform
	Exports      map[string]string
	Capabilities []string
	// Err is why the part does not work, nil when it does.
	Err error
}

// RuntimePluginType is the type of the plugin that runs tasks; what it tells
// about a runtime is asked of that runtime's shim.
const RuntimePluginType = "io.containerd.runtime.v2"

type introspection struct {
	api.UnimplementedIntrospectionServer
	plugins []Plugin
	uuid    string
	manager *task.Manager
}

func (s *introspection) Plugins(_ context.Context, req *api.PluginsRequest) (*api.PluginsResponse, error) {
	selected, err := filter.ParseAll(req.Filters...)
	if err != nil {
		return nil, err
	}
	resp := &api.PluginsResponse{}
	for _, p := range s.plugins {
		if selected.Match(filter.AdaptorFunc(p.field)) {
			resp.Plugins = append(resp.Plugins, pluginToProto(p))
		}
	}
	return resp, nil
}

func (p Plugin) field(path []string) (string, bool) {
	if len(path) == 0 {
		return "", false
	}
	switch path[0] {
	case "type":
		return p.Type, true
	case "id":
		return p.ID, true
	}
	return "", false
}

func (s *introspection) Server(context.Context, *emptypb.Empty) (*api.ServerResponse, error) {
	pidns, err := pidNamespace()
	if err != nil {
		return nil, err
	}
	return &api.ServerResponse{UUID: s.uuid, Pid: uint64(os.Getpid()), Pidns: pidns}, nil
}

// PluginInfo tells about one plugin. With options it is a question to the
// plugin itself, which only the task runtime answers: what a runtime can do.
func (s *introspection) PluginInfo(ctx context.Context, req *api.PluginInfoRequest) (*api.PluginInfoResponse, error) {
	p, err := s.find(req.Type, req.ID)
	if err != nil {
		return nil, err
	}
	resp := &api.PluginInfoResponse{Plugin: pluginToProto(p)}
	if req.Options == nil {
		return resp, nil
	}
	if p.Err != nil {
		return nil, fmt.Errorf("plugin %s.%s has not started: %w", p.Type, p.ID, errdefs.ErrFailedPrecondition)
	}
	if p.Type != RuntimePluginType {
		return nil, fmt.Errorf("plugin %s.%s has no more to tell: %w", p.Type, p.ID, errdefs.ErrNotImplemented)
	}
	resp.Extra, err = s.runtimeInfo(ctx, req.Options)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *introspection) find(typ, id string) (Plugin, error) {
	for _, p := range s.plugins {
		if p.Type == typ && p.ID == id {
			return p, nil
		}
	}
	return Plugin{}, fmt.Errorf("plugin %s.%s not found: %w", typ, id, errdefs.ErrNotFound)
}

func (s *introspection) runtimeInfo(ctx context.Context, options *anypb.Any) (*anypb.Any, error) {
	if !typeurl.Is(options, (*types.RuntimeRequest)(nil)) {
		return nil, fmt.Errorf("question of type %q: %w", options.GetTypeUrl(), errdefs.ErrNotImplemented)
	}
	var req types.RuntimeRequest
	if err := typeurl.UnmarshalTo(options, &req); err != nil {
		return nil, fmt.Errorf("runtime request: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	info, err := s.manager.RuntimeInfo(ctx, req.RuntimePath, "", wire.AnyFromProto(req.Options))
	if err != nil {
		return nil, err
	}
	return wire.AnyToProto(&info), nil
}

func pluginToProto(p Plugin) *api.Plugin {
	m := &api.Plugin{
		Type:         p.Type,
		ID:           p.ID,
		Requires:     p.Requires,
		Exports:      p.Exports,
		Capabilities: p.Capabilities,
	}
	for _, platform := range p.Platforms {
		m.Platforms = append(m.Platforms, wire.PlatformToProto(platform))
	}
	if p.Err != nil {
		st := status.Convert(wire.ToStatus(p.Err))
		m.InitErr = &rpc.Status{Code: int32(st.Code()), Message: st.Message()}
	}
	return m
}
