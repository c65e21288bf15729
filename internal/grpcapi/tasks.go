package grpcapi

import (
	"context"
	"fmt"
	"log/slog"

	"berth/internal/meta"
	"berth/internal/object"
	"berth/internal/task"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"
)

// tasks needs the metadata only to create one: a task is found by its shim, so
// that it can be seen and ended even when its container's record is gone.
type tasks struct {
	api.UnimplementedTasksServer
	db      *meta.DB
	manager *task.Manager
	log     *slog.Logger
}

func (s *tasks) Create(ctx context.Context, req *api.CreateTaskRequest) (*api.CreateTaskResponse, error) {
	scope := ScopeOf(ctx)
	c, err := s.db.Scope(scope.Namespace, scope.Lease).Containers().Get(ctx, req.ContainerID)
	if err != nil {
		return nil, err
	}
	opts, err := createOptions(req)
	if err != nil {
		return nil, err
	}
	pid, err := s.create(ctx, req, c, opts)
	if err != nil {
		return nil, err
	}
	return &api.CreateTaskResponse{ContainerID: req.ContainerID, Pid: pid}, nil
}

func (s *tasks) Start(ctx context.Context, req *api.StartRequest) (*api.StartResponse, error) {
	pid, err := s.manager.Start(ctx, ScopeOf(ctx).Namespace, req.ContainerID, req.ExecID)
	if err != nil {
		return nil, err
	}
	return &api.StartResponse{Pid: pid}, nil
}

func (s *tasks) Delete(ctx context.Context, req *api.DeleteTaskRequest) (*api.DeleteResponse, error) {
	return s.remove(ctx, req.ContainerID, "")
}

func (s *tasks) DeleteProcess(ctx context.Context, req *api.DeleteProcessRequest) (*api.DeleteResponse, error) {
	if req.ExecID == "" {
		// An empty ID would mean the init process, and with it the whole task.
		return nil, fmt.Errorf("exec id cannot be empty: %w", errdefs.ErrInvalidArgument)
	}
	return s.remove(ctx, req.ContainerID, req.ExecID)
}

func (s *tasks) remove(ctx context.Context, id, execID string) (*api.DeleteResponse, error) {
	exit, err := s.manager.Delete(ctx, ScopeOf(ctx).Namespace, id, execID)
	if err != nil {
		return nil, err
	}
	return &api.DeleteResponse{
		ID:         execID,
		Pid:        exit.PID,
		ExitStatus: exit.Status,
		ExitedAt:   wire.TimeToProto(exit.At),
	}, nil
}

func (s *tasks) Get(ctx context.Context, req *api.GetRequest) (*api.GetResponse, error) {
	p, err := s.manager.State(ctx, ScopeOf(ctx).Namespace, req.ContainerID, req.ExecID)
	if err != nil {
		return nil, err
	}
	return &api.GetResponse{Process: wire.ProcessToProto(p)}, nil
}

// List ignores the request's filter, as containerd does.
func (s *tasks) List(ctx context.Context, _ *api.ListTasksRequest) (*api.ListTasksResponse, error) {
	list, err := s.manager.List(ctx, ScopeOf(ctx).Namespace)
	if err != nil {
		return nil, err
	}
	resp := &api.ListTasksResponse{}
	for _, p := range list {
		resp.Tasks = append(resp.Tasks, wire.ProcessToProto(p))
	}
	return resp, nil
}

func (s *tasks) Kill(ctx context.Context, req *api.KillRequest) (*emptypb.Empty, error) {
	return empty(s.manager.Kill(ctx, ScopeOf(ctx).Namespace, req.ContainerID, req.ExecID, req.Signal, req.All))
}

func (s *tasks) Exec(ctx context.Context, req *api.ExecProcessRequest) (*emptypb.Empty, error) {
	if req.ExecID == "" {
		return nil, fmt.Errorf("exec id cannot be empty: %w", errdefs.ErrInvalidArgument)
	}
	if req.Spec == nil {
		return nil, required("spec of the process")
	}
	return empty(s.manager.Exec(ctx, ScopeOf(ctx).Namespace, req.ContainerID, req.ExecID, task.ExecOptions{
		IO:   object.TaskIO{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Terminal: req.Terminal},
		Spec: *wire.AnyFromProto(req.Spec),
	}))
}

func (s *tasks) ResizePty(ctx context.Context, req *api.ResizePtyRequest) (*emptypb.Empty, error) {
	return empty(s.manager.ResizePty(ctx, ScopeOf(ctx).Namespace, req.ContainerID, req.ExecID, req.Width, req.Height))
}

func (s *tasks) CloseIO(ctx context.Context, req *api.CloseIORequest) (*emptypb.Empty, error) {
	return empty(s.manager.CloseIO(ctx, ScopeOf(ctx).Namespace, req.ContainerID, req.ExecID, req.Stdin))
}

func (s *tasks) Pause(ctx context.Context, req *api.PauseTaskRequest) (*emptypb.Empty, error) {
	return empty(s.manager.Pause(ctx, ScopeOf(ctx).Namespace, req.ContainerID))
}

func (s *tasks) Resume(ctx context.Context, req *api.ResumeTaskRequest) (*emptypb.Empty, error) {
	return empty(s.manager.Resume(ctx, ScopeOf(ctx).Namespace, req.ContainerID))
}

func (s *tasks) ListPids(ctx context.Context, req *api.ListPidsRequest) (*api.ListPidsResponse, error) {
	list, err := s.manager.Pids(ctx, ScopeOf(ctx).Namespace, req.ContainerID)
	if err != nil {
		return nil, err
	}
	return &api.ListPidsResponse{Processes: wire.ProcessInfosToProto(list)}, nil
}

func (s *tasks) Update(ctx context.Context, req *api.UpdateTaskRequest) (*emptypb.Empty, error) {
	if req.Resources == nil {
		return nil, required("resources")
	}
	return empty(s.manager.Update(ctx, ScopeOf(ctx).Namespace, req.ContainerID, *wire.AnyFromProto(req.Resources), req.Annotations))
}

func (s *tasks) Wait(ctx context.Context, req *api.WaitRequest) (*api.WaitResponse, error) {
	exit, err := s.manager.Wait(ctx, ScopeOf(ctx).Namespace, req.ContainerID, req.ExecID)
	if err != nil {
		return nil, err
	}
	return &api.WaitResponse{ExitStatus: exit.Status, ExitedAt: wire.TimeToProto(exit.At)}, nil
}
