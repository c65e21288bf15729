package shim

import (
	"context"
	"fmt"
	"os"

	"berth/internal/object"
	"berth/internal/ociruntime"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// taskNames are the services under which the task API is served. Versions 2 and 3
// have the same messages on the wire; the package of version 3 would link gRPC.
var taskNames = [...]string{"containerd.task.v2.Task", "containerd.task.v3.Task"}

// method adapts a typed method to ttrpc.
func method[Req any, PReq interface {
	*Req
	proto.Message
}, Resp proto.Message](fn func(context.Context, PReq) (Resp, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		req := PReq(new(Req))
		if err := unmarshal(req); err != nil {
			return nil, err
		}
		return fn(ctx, req)
	}
}

// register serves the task API.
func (s *service) register(server *ttrpc.Server, shutdown func(now bool)) {
	a := &taskAPI{s, shutdown}
	desc := &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"State":      method(a.State),
		"Create":     method(a.Create),
		"Start":      method(a.Start),
		"Delete":     method(a.Delete),
		"Pids":       method(a.Pids),
		"Pause":      method(a.Pause),
		"Resume":     method(a.Resume),
		"Checkpoint": method(a.Checkpoint),
		"Kill":       method(a.Kill),
		"Exec":       method(a.Exec),
		"ResizePty":  method(a.ResizePty),
		"CloseIO":    method(a.CloseIO),
		"Update":     method(a.Update),
		"Wait":       method(a.Wait),
		"Stats":      method(a.Stats),
		"Connect":    method(a.Connect),
		"Shutdown":   method(a.Shutdown),
	}}
	for _, name := range taskNames {
		server.RegisterService(name, desc)
	}
}

// taskAPI is the service as the wire has it: messages in, one call, messages out.
type taskAPI struct {
	s        *service
	shutdown func(now bool)
}

var empty = new(emptypb.Empty)

func (a *taskAPI) State(ctx context.Context, r *task.StateRequest) (*task.StateResponse, error) {
	p, err := a.s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	st := p.snapshot()
	return &task.StateResponse{
		ID: r.ID, ExecID: r.ExecID, Bundle: p.c.bundle, Pid: st.PID, Status: tasktypes.Status(st.Status),
		Stdin: st.IO.Stdin, Stdout: st.IO.Stdout, Stderr: st.IO.Stderr, Terminal: st.IO.Terminal,
		ExitStatus: st.Exit.Status, ExitedAt: timestamp(st.Exit),
	}, nil
}

func timestamp(e object.Exit) *timestamppb.Timestamp {
	if e.At.IsZero() {
		return nil
	}
	return timestamppb.New(e.At)
}

func (a *taskAPI) Create(ctx context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	opts, err := runcOptions(r.Options)
	if err != nil {
		return nil, err
	}
	pid, err := a.s.create(ctx, createRequest{
		id: r.ID, bundle: r.Bundle, rootfs: mountsFromProto(r.Rootfs), checkpoint: r.Checkpoint, options: opts,
		io: object.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
	if err != nil {
		return nil, err
	}
	return &task.CreateTaskResponse{Pid: pid}, nil
}

// runcOptions decodes the options of the runtime; nil are the defaults.
func runcOptions(a *anypb.Any) (*options.Options, error) {
	o := new(options.Options)
	if a == nil || a.TypeUrl == "" {
		return o, nil
	}
	if !a.MessageIs(o) && a.TypeUrl != string(proto.MessageName(o)) {
		return nil, fmt.Errorf("options of type %s: this shim takes %s: %w", a.TypeUrl, proto.MessageName(o), errdefs.ErrInvalidArgument)
	}
	if err := proto.Unmarshal(a.Value, o); err != nil {
		return nil, fmt.Errorf("options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return o, nil
}

func (a *taskAPI) Start(ctx context.Context, r *task.StartRequest) (*task.StartResponse, error) {
	pid, err := a.s.start(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &task.StartResponse{Pid: pid}, nil
}

func (a *taskAPI) Delete(ctx context.Context, r *task.DeleteRequest) (*task.DeleteResponse, error) {
	end, err := a.s.delete(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &task.DeleteResponse{Pid: end.PID, ExitStatus: end.Status, ExitedAt: timestamp(end)}, nil
}

func (a *taskAPI) Pids(ctx context.Context, r *task.PidsRequest) (*task.PidsResponse, error) {
	infos, err := a.s.pids(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	resp := new(task.PidsResponse)
	for _, i := range infos {
		info := &tasktypes.ProcessInfo{Pid: i.pid}
		if i.execID != "" {
			if info.Info, err = marshalAny(&options.ProcessDetails{ExecID: i.execID}); err != nil {
				return nil, err
			}
		}
		resp.Processes = append(resp.Processes, info)
	}
	return resp, nil
}

// marshalAny names the type as containerd does: without a host.
func marshalAny(m proto.Message) (*anypb.Any, error) {
	value, err := proto.Marshal(m)
	return &anypb.Any{TypeUrl: string(proto.MessageName(m)), Value: value}, err
}

func (a *taskAPI) Pause(ctx context.Context, r *task.PauseRequest) (*emptypb.Empty, error) {
	return empty, a.s.pause(ctx, r.ID)
}

func (a *taskAPI) Resume(ctx context.Context, r *task.ResumeRequest) (*emptypb.Empty, error) {
	return empty, a.s.resume(ctx, r.ID)
}

func (a *taskAPI) Checkpoint(ctx context.Context, r *task.CheckpointTaskRequest) (*emptypb.Empty, error) {
	o := new(options.CheckpointOptions)
	if r.Options != nil && len(r.Options.Value) > 0 {
		if err := proto.Unmarshal(r.Options.Value, o); err != nil {
			return nil, fmt.Errorf("options: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	image := r.Path
	if o.ImagePath != "" {
		image = o.ImagePath
	}
	if image == "" {
		return nil, fmt.Errorf("a checkpoint needs a directory to be written to: %w", errdefs.ErrInvalidArgument)
	}
	return empty, a.s.checkpoint(ctx, r.ID, ociruntime.CheckpointOptions{
		ImagePath: image, WorkPath: o.WorkPath, ParentPath: o.ParentPath, Exit: o.Exit, OpenTCP: o.OpenTcp,
		ExternalUnixSockets: o.ExternalUnixSockets, Terminal: o.Terminal, FileLocks: o.FileLocks,
		EmptyNamespaces: o.EmptyNamespaces, CgroupsMode: o.CgroupsMode,
	})
}

func (a *taskAPI) Kill(ctx context.Context, r *task.KillRequest) (*emptypb.Empty, error) {
	return empty, a.s.kill(ctx, r.ID, r.ExecID, r.Signal, r.All)
}

func (a *taskAPI) Exec(ctx context.Context, r *task.ExecProcessRequest) (*emptypb.Empty, error) {
	io := object.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal}
	return empty, a.s.exec(ctx, r.ID, r.ExecID, io, r.GetSpec().GetValue())
}

func (a *taskAPI) ResizePty(ctx context.Context, r *task.ResizePtyRequest) (*emptypb.Empty, error) {
	return empty, a.s.resize(r.ID, r.ExecID, r.Width, r.Height)
}

func (a *taskAPI) CloseIO(ctx context.Context, r *task.CloseIORequest) (*emptypb.Empty, error) {
	return empty, a.s.closeIO(r.ID, r.ExecID, r.Stdin)
}

func (a *taskAPI) Update(ctx context.Context, r *task.UpdateTaskRequest) (*emptypb.Empty, error) {
	return empty, a.s.update(ctx, r.ID, r.GetResources().GetValue())
}

func (a *taskAPI) Wait(ctx context.Context, r *task.WaitRequest) (*task.WaitResponse, error) {
	end, err := a.s.wait(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &task.WaitResponse{ExitStatus: end.Status, ExitedAt: timestamp(end)}, nil
}

func (a *taskAPI) Stats(ctx context.Context, r *task.StatsRequest) (*task.StatsResponse, error) {
	typeURL, value, err := a.s.stats(r.ID)
	if err != nil {
		return nil, err
	}
	return &task.StatsResponse{Stats: &anypb.Any{TypeUrl: typeURL, Value: value}}, nil
}

func (a *taskAPI) Connect(ctx context.Context, r *task.ConnectRequest) (*task.ConnectResponse, error) {
	resp := &task.ConnectResponse{ShimPid: uint32(os.Getpid()), Version: "v2"}
	if c, err := a.s.container(r.ID); err == nil {
		resp.TaskPid = c.init.snapshot().PID
	}
	return resp, nil
}

func (a *taskAPI) Shutdown(ctx context.Context, r *task.ShutdownRequest) (*emptypb.Empty, error) {
	// Compat: a shim that has other containers stays, and says nothing.
	if a.s.empty() || r.Now {
		a.shutdown(r.Now)
	}
	return empty, nil
}

func mountsFromProto(mounts []*types.Mount) []object.Mount {
	out := make([]object.Mount, len(mounts))
	for i, m := range mounts {
		out[i] = object.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()}
	}
	return out
}

func mountsToProto(mounts []object.Mount) []*types.Mount {
	out := make([]*types.Mount, len(mounts))
	for i, m := range mounts {
		out[i] = &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
	}
	return out
}
