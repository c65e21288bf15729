package task

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/internal/object"
	"berth/internal/task/shimconn"
	"berth/internal/task/shimproc"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The test binary is also the fake shims, under these names. How they misbehave
// is told by the annotations of the container's spec.
const (
	foreignShim = "containerd-shim-foreign-v2"
	ownShim     = "containerd-shim-own-v2"
)

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case foreignShim, ownShim:
		if err := fakeMain(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0") // for the fakes, which end often
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
		os.Remove("/run/containerd/runc/ns") // the runtime leaves the namespace's directory
	}
	os.Exit(code)
}

// fakeBinary makes a fake shim in a directory of its own.
func fakeBinary(t testing.TB, name string) string {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.Link(self, path); err != nil {
		data, err := os.ReadFile(self)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// fake is a container's record for a fake shim, with annotations in pairs.
func fake(id, runtime string, annotations ...string) object.Container {
	a := make(map[string]string)
	for i := 0; i < len(annotations); i += 2 {
		a[annotations[i]] = annotations[i+1]
	}
	data, _ := json.Marshal(map[string]any{"annotations": a})
	return object.Container{ID: id, Runtime: object.Runtime{Name: runtime}, Spec: &object.Any{TypeURL: "spec", Value: data}}
}

func fakeAnnotations(bundle string) map[string]string {
	data, _ := os.ReadFile(filepath.Join(bundle, specFile))
	facts, _ := parseSpec(data)
	return facts.Annotations
}

// note leaves a trace of a command beside the state directory.
func note(bundle, what string) {
	dir := filepath.Join(bundle, "../../../..")
	f, err := os.OpenFile(filepath.Join(dir, "notes"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		fmt.Fprintf(f, "%s %s\n", what, filepath.Base(bundle))
		f.Close()
	}
}

func notes(dir string) string {
	data, _ := os.ReadFile(filepath.Join(dir, "notes"))
	return string(data)
}

func fakeMain(args []string) error {
	switch args[len(args)-1] {
	case "-info":
		info := &types.RuntimeInfo{Name: "fake"}
		if filepath.Base(os.Args[0]) == ownShim {
			info.Annotations = map[string]string{servesAnnotation: "1"}
		}
		data, err := proto.Marshal(info)
		os.Stdout.Write(data)
		return err
	case "work":
		time.Sleep(time.Hour) // deliberate: it is killed
	case "start":
		return fakeStart(args)
	case "delete":
		bundle, _ := os.Getwd()
		note(bundle, "delete")
		a := fakeAnnotations(bundle)
		if a["delete"] == "fail" {
			return fmt.Errorf("delete fails")
		}
		data, err := proto.Marshal(&taskapi.DeleteResponse{Pid: 4242, ExitStatus: 137, ExitedAt: timestamppb.Now()})
		os.Stdout.Write(data)
		return err
	case "server":
		l, err := net.FileListener(os.NewFile(3, "listener"))
		if err != nil {
			return err
		}
		bundle, _ := os.Getwd()
		return fakeServe(l, bundle)
	}
	if len(args) == 2 && args[0] == "serve" && strings.TrimSpace(args[1]) == "" {
		return fakeSpare()
	}
	return fmt.Errorf("unknown arguments %q", args)
}

func fakeStart(args []string) error {
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var params bootapi.BootstrapParams
	if err := proto.Unmarshal(in, &params); err != nil {
		return err
	}
	bundle, _ := os.Getwd()
	a := fakeAnnotations(bundle)
	note(bundle, "start")
	switch a["start"] {
	case "fail":
		return fmt.Errorf("start fails as told")
	case "hang":
		select {}
	}
	group := params.InstanceID
	if g := a["io.kubernetes.cri.sandbox-id"]; g != "" {
		group = g
	}
	sum := sha256.Sum256([]byte(filepath.Join(params.ContainerdGrpcAddress, params.Namespace, group)))
	path := fmt.Sprintf("%s/%x", params.GetSocketDir(), sum)
	fd, err := shimconn.Listen(path)
	if err == nil {
		f := os.NewFile(uintptr(fd), "listener")
		syscall.SetNonblock(fd, false)
		self, _ := os.Executable()
		cmd := exec.Command(self, append(args[:len(args)-1], "server")...)
		cmd.Args[0] = os.Args[0]
		cmd.ExtraFiles = []*os.File{f}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			return err
		}
	} else if !errdefs.IsAlreadyExists(err) {
		return err
	}
	result := &bootapi.BootstrapResult{Version: 3, Address: "unix://" + path, Protocol: "ttrpc"}
	if a["bootstrap"] != "json3" && (a["task"] == "v2" || a["bootstrap"] == "line") {
		result.Version = 2
	}
	if a["grpc"] != "" {
		result.Protocol = "grpc"
	}
	var out []byte
	switch a["bootstrap"] {
	case "line":
		out = []byte(result.Address + "\n")
	case "json", "json3":
		out, err = json.Marshal(result)
	case "garbage":
		out = []byte{0x08, 0xff}
	case "future":
		result.Version = 9
		out, err = proto.Marshal(result)
	default:
		out, err = proto.Marshal(result)
	}
	os.Stdout.Write(out)
	if a["start"] == "die" {
		return fmt.Errorf("died after the start of the server")
	}
	return nil
}

func fakeSpare() error {
	c, err := net.FileConn(os.NewFile(3, "control"))
	if err != nil {
		return err
	}
	conn := c.(*net.UnixConn)
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if n == 0 {
		return nil
	}
	if err != nil || n < 4 || int(binary.BigEndian.Uint32(buf)) != n-4 {
		return fmt.Errorf("message of %d bytes: %v", n, err)
	}
	var a shimproc.Assignment
	if err := json.Unmarshal(buf[4:n], &a); err != nil {
		return err
	}
	if err := os.Chdir(a.Bundle); err != nil {
		return err
	}
	how := fakeAnnotations(a.Bundle)["serve"]
	switch how {
	case "refuse":
		fmt.Fprintln(conn, `{"error":"does not want to"}`)
		select {}
	case "die":
		return fmt.Errorf("dies as told")
	}
	msgs, _ := unix.ParseSocketControlMessage(oob[:oobn])
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return err
	}
	l, err := net.FileListener(os.NewFile(uintptr(fds[0]), "listener"))
	if err != nil {
		return err
	}
	fmt.Fprintf(conn, "{\"pid\":%d,\"version\":3}\n", os.Getpid())
	conn.Close()
	note(a.Bundle, "serve")
	return fakeServe(l, a.Bundle)
}

// fakeService is a shim without containers: processes are entries in a map.
type fakeService struct {
	taskapi.TTRPCTaskService
	how map[string]string

	mu    sync.Mutex
	tasks map[string]*fakeTask
}

type fakeTask struct {
	how    map[string]string
	status tasktypes.Status
	code   uint32
	at     time.Time
	done   chan struct{}
}

func fakeServe(l net.Listener, bundle string) error {
	s := &fakeService{tasks: make(map[string]*fakeTask), how: fakeAnnotations(bundle)}
	if s.how["grpc"] != "" {
		g := grpc.NewServer()
		taskapi.RegisterTaskServer(g, grpcFake{s: s})
		if s.how["sandbox"] != "" {
			sandboxapi.RegisterSandboxServer(g, &fakeSandbox{how: s.how, ended: make(chan struct{})})
		}
		return g.Serve(l)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	if s.how["task"] == "v2" {
		server.RegisterService("containerd.task.v2.Task", &ttrpc.ServiceDesc{Methods: s.v2()})
	} else {
		taskapi.RegisterTTRPCTaskService(server, s)
	}
	if s.how["sandbox"] != "" {
		sandboxapi.RegisterTTRPCSandboxService(server, &fakeSandbox{how: s.how, ended: make(chan struct{})})
	}
	if s.how["listen"] == "wedged" {
		select {}
	}
	return server.Serve(context.Background(), l)
}

func method[Q any, A any, PQ interface {
	*Q
	proto.Message
}](f func(context.Context, PQ) (A, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		q := PQ(new(Q))
		if err := unmarshal(q); err != nil {
			return nil, err
		}
		return f(ctx, q)
	}
}

func (s *fakeService) v2() map[string]ttrpc.Method {
	var _ taskv2.TTRPCTaskService // its messages are those of version 3
	return map[string]ttrpc.Method{
		"Create": method(s.Create), "Start": method(s.Start), "State": method(s.State),
		"Delete": method(s.Delete), "Wait": method(s.Wait), "Connect": method(s.Connect),
		"Shutdown": method(s.Shutdown), "Kill": method(s.Kill),
	}
}

func (s *fakeService) get(id string) (*fakeTask, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tasks[id]; t != nil {
		return t, nil
	}
	return nil, status.Errorf(codes.NotFound, "fake has no task %s", id)
}

// misbehave does what the annotation of a method says.
func misbehave(how map[string]string, method string) error {
	switch how[method] {
	case "hang":
		select {}
	case "die":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "fail":
		return status.Errorf(codes.FailedPrecondition, "%s fails as told", method)
	}
	return nil
}

func (s *fakeService) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	how := fakeAnnotations(r.Bundle)
	if how["create"] == "late" { // the shim makes it although nobody waits any more
		defer s.add(r.ID, how)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if how["create"] == "work" { // a runtime is at it, and outlives the shim
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cmd := exec.Command(self, "--bundle", r.Bundle, "work")
		cmd.Args[0] = ownShim
		cmd.Dir = r.Bundle
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		note(r.Bundle, "working")
		select {}
	}
	if err := misbehave(how, "create"); err != nil {
		return nil, err
	}
	s.add(r.ID, how)
	return &taskapi.CreateTaskResponse{Pid: 1000}, nil
}

func (s *fakeService) add(id string, how map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tasks[id] = &fakeTask{how: how, status: tasktypes.Status_CREATED, done: make(chan struct{})}
}

func (s *fakeService) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	t, err := s.get(r.ID)
	if err != nil {
		return nil, err
	}
	if err := misbehave(t.how, "run"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	t.status = tasktypes.Status_RUNNING
	s.mu.Unlock()
	return &taskapi.StartResponse{Pid: 1000}, nil
}

func (s *fakeService) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	t, err := s.get(r.ID)
	if err != nil {
		return nil, err
	}
	if err := misbehave(t.how, "kill"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.status != tasktypes.Status_STOPPED {
		t.status, t.code, t.at = tasktypes.Status_STOPPED, 128+r.Signal, time.Now()
		close(t.done)
	}
	return &emptypb.Empty{}, nil
}

func (s *fakeService) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	t, err := s.get(r.ID)
	if err != nil {
		return nil, err
	}
	if err := misbehave(t.how, "state"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &taskapi.StateResponse{ID: r.ID, Pid: 1000, Status: t.status, ExitStatus: t.code, ExitedAt: timestamppb.New(t.at)}, nil
}

func (s *fakeService) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	t, err := s.get(r.ID)
	if err != nil {
		return nil, err
	}
	select {
	case <-t.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return &taskapi.WaitResponse{ExitStatus: t.code, ExitedAt: timestamppb.New(t.at)}, nil
}

func (s *fakeService) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	t, err := s.get(r.ID)
	if err != nil {
		return nil, err
	}
	if err := misbehave(t.how, "remove"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.status == tasktypes.Status_RUNNING {
		return nil, status.Errorf(codes.FailedPrecondition, "task %s is running", r.ID)
	}
	delete(s.tasks, r.ID)
	return &taskapi.DeleteResponse{Pid: 1000, ExitStatus: t.code, ExitedAt: timestamppb.New(t.at)}, nil
}

func (s *fakeService) Connect(ctx context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	if err := misbehave(s.how, "connect"); err != nil {
		return nil, err
	}
	pid := uint32(os.Getpid())
	if s.how["pid"] == "lie" {
		pid = 1
	}
	if s.how["pid"] == "parent" {
		pid = uint32(os.Getppid())
	}
	return &taskapi.ConnectResponse{ShimPid: pid, TaskPid: 1000}, nil
}

func (s *fakeService) Shutdown(ctx context.Context, r *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := misbehave(s.how, "shutdown"); err != nil {
		return nil, err
	}
	if len(s.tasks) == 0 && s.how["shutdown"] != "stay" {
		time.AfterFunc(time.Millisecond, func() { os.Exit(0) })
	}
	return &emptypb.Empty{}, nil
}

// grpcFake is the same service over gRPC.
type grpcFake struct {
	taskapi.UnimplementedTaskServer
	s *fakeService
}

func (g grpcFake) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	return g.s.Create(ctx, r)
}
func (g grpcFake) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	return g.s.Start(ctx, r)
}
func (g grpcFake) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	return g.s.Kill(ctx, r)
}
func (g grpcFake) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	return g.s.State(ctx, r)
}
func (g grpcFake) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	return g.s.Wait(ctx, r)
}
func (g grpcFake) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	return g.s.Delete(ctx, r)
}
func (g grpcFake) Connect(ctx context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	return g.s.Connect(ctx, r)
}
func (g grpcFake) Shutdown(ctx context.Context, r *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	return g.s.Shutdown(ctx, r)
}
