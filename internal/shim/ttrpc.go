package shim

import (
	"context"
	"fmt"
	"os"
	"strings"

	"berth/internal/object/live"
	"berth/internal/ociruntime"
	"berth/internal/shim/api"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
)

// taskNames are the services under which the task API is served. Versions 2 and 3
// have the same messages on the wire; the package of version 3 would link gRPC.
var taskNames = [...]string{"containerd.task.v2.Task", "containerd.task.v3.Task"}

// method adapts a typed method to ttrpc.
func method[Req any, PReq interface {
	*Req
	api.Message
}, Resp api.Message](fn func(context.Context, PReq) (Resp, error)) ttrpc.Method {
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

func (a *taskAPI) State(ctx context.Context, r *api.StateRequest) (*api.StateResponse, error) {
	p, err := a.s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	st := p.snapshot()
	if p.isExec() && st.Status == live.TaskRunning {
		// A container is frozen as a whole.
		if whole := p.c.init.snapshot().Status; whole == live.TaskPausing || whole == live.TaskPaused {
			st.Status = whole
		}
	}
	return &api.StateResponse{
		ID: r.ID, ExecID: r.ExecID, Bundle: p.c.bundle, Pid: st.PID, Status: uint32(st.Status),
		Stdin: st.IO.Stdin, Stdout: st.IO.Stdout, Stderr: st.IO.Stderr, Terminal: st.IO.Terminal,
		ExitStatus: st.Exit.Status, ExitedAt: api.Time(st.Exit.At),
	}, nil
}

func (a *taskAPI) Create(ctx context.Context, r *api.CreateTaskRequest) (*api.CreateTaskResponse, error) {
	opts, err := runcOptions(r.Options)
	if err != nil {
		return nil, err
	}
	pid, err := a.s.create(ctx, createRequest{
		id: r.ID, bundle: r.Bundle, rootfs: mountsFromAPI(r.Rootfs), checkpoint: r.Checkpoint, options: opts,
		io: live.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
	if err != nil {
		return nil, err
	}
	return &api.CreateTaskResponse{Pid: pid}, nil
}

// runcOptions decodes the options of the runtime; nil are the defaults.
func runcOptions(a *api.Any) (*api.Options, error) {
	o := new(api.Options)
	if a == nil || a.TypeUrl == "" {
		return o, nil
	}
	if name := a.TypeUrl[strings.LastIndexByte(a.TypeUrl, '/')+1:]; name != api.OptionsName {
		return nil, fmt.Errorf("options of type %s: this shim takes %s: %w", name, api.OptionsName, errdefs.ErrInvalidArgument)
	}
	if err := api.Unmarshal(a.Value, o); err != nil {
		return nil, fmt.Errorf("options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return o, nil
}

func (a *taskAPI) Start(ctx context.Context, r *api.StartRequest) (*api.StartResponse, error) {
	pid, err := a.s.start(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &api.StartResponse{Pid: pid}, nil
}

func (a *taskAPI) Delete(ctx context.Context, r *api.DeleteRequest) (*api.DeleteResponse, error) {
	end, err := a.s.delete(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &api.DeleteResponse{Pid: end.PID, ExitStatus: end.Status, ExitedAt: api.Time(end.At)}, nil
}

func (a *taskAPI) Pids(ctx context.Context, r *api.PidsRequest) (*api.PidsResponse, error) {
	infos, err := a.s.pids(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	resp := new(api.PidsResponse)
	for _, i := range infos {
		info := &api.ProcessInfo{Pid: i.pid}
		if i.execID != "" {
			info.Info = &api.Any{TypeUrl: api.ProcessDetailsName, Value: api.Marshal(&api.ProcessDetails{ExecID: i.execID})}
		}
		resp.Processes = append(resp.Processes, info)
	}
	return resp, nil
}

func (a *taskAPI) Pause(ctx context.Context, r *api.PauseRequest) (*api.Empty, error) {
	return new(api.Empty), a.s.pause(ctx, r.ID)
}

func (a *taskAPI) Resume(ctx context.Context, r *api.ResumeRequest) (*api.Empty, error) {
	return new(api.Empty), a.s.resume(ctx, r.ID)
}

func (a *taskAPI) Checkpoint(ctx context.Context, r *api.CheckpointTaskRequest) (*api.Empty, error) {
	o := new(api.CheckpointOptions)
	if r.Options != nil {
		if err := api.Unmarshal(r.Options.Value, o); err != nil {
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
	return new(api.Empty), a.s.checkpoint(ctx, r.ID, ociruntime.CheckpointOptions{
		ImagePath: image, WorkPath: o.WorkPath, ParentPath: o.ParentPath, Exit: o.Exit, OpenTCP: o.OpenTcp,
		ExternalUnixSockets: o.ExternalUnixSockets, Terminal: o.Terminal, FileLocks: o.FileLocks,
		EmptyNamespaces: o.EmptyNamespaces, CgroupsMode: o.CgroupsMode,
	})
}

func (a *taskAPI) Kill(ctx context.Context, r *api.KillRequest) (*api.Empty, error) {
	return new(api.Empty), a.s.kill(ctx, r.ID, r.ExecID, r.Signal, r.All)
}

func (a *taskAPI) Exec(ctx context.Context, r *api.ExecProcessRequest) (*api.Empty, error) {
	io := live.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal}
	return new(api.Empty), a.s.exec(ctx, r.ID, r.ExecID, io, value(r.Spec))
}

func (a *taskAPI) ResizePty(ctx context.Context, r *api.ResizePtyRequest) (*api.Empty, error) {
	return new(api.Empty), a.s.resize(r.ID, r.ExecID, r.Width, r.Height)
}

func (a *taskAPI) CloseIO(ctx context.Context, r *api.CloseIORequest) (*api.Empty, error) {
	return new(api.Empty), a.s.closeIO(r.ID, r.ExecID, r.Stdin)
}

func (a *taskAPI) Update(ctx context.Context, r *api.UpdateTaskRequest) (*api.Empty, error) {
	return new(api.Empty), a.s.update(ctx, r.ID, value(r.Resources))
}

func (a *taskAPI) Wait(ctx context.Context, r *api.WaitRequest) (*api.WaitResponse, error) {
	end, err := a.s.wait(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &api.WaitResponse{ExitStatus: end.Status, ExitedAt: api.Time(end.At)}, nil
}

func (a *taskAPI) Stats(ctx context.Context, r *api.StatsRequest) (*api.StatsResponse, error) {
	typeURL, raw, err := a.s.stats(r.ID)
	if err != nil {
		return nil, err
	}
	return &api.StatsResponse{Stats: &api.Any{TypeUrl: typeURL, Value: raw}}, nil
}

func (a *taskAPI) Connect(ctx context.Context, r *api.ConnectRequest) (*api.ConnectResponse, error) {
	resp := &api.ConnectResponse{ShimPid: uint32(os.Getpid()), Version: "v2"}
	if c, err := a.s.container(r.ID); err == nil {
		resp.TaskPid = c.init.snapshot().PID
	}
	return resp, nil
}

func (a *taskAPI) Shutdown(ctx context.Context, r *api.ShutdownRequest) (*api.Empty, error) {
	// Compat: a shim that has containers stays, and says nothing, however urgent it is.
	if a.s.empty() {
		a.shutdown(r.Now)
	}
	return new(api.Empty), nil
}

// value of an Any that may be absent.
func value(a *api.Any) []byte {
	if a == nil {
		return nil
	}
	return a.Value
}

func mountsFromAPI(mounts []*api.Mount) []live.Mount {
	out := make([]live.Mount, len(mounts))
	for i, m := range mounts {
		out[i] = live.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
	}
	return out
}

func mountsToAPI(mounts []live.Mount) []*api.Mount {
	out := make([]*api.Mount, len(mounts))
	for i, m := range mounts {
		out[i] = &api.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
	}
	return out
}
