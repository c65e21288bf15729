package main

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

type fakeContainers struct {
	containersapi.UnimplementedContainersServer
	hang chan struct{}
}

func (f fakeContainers) List(ctx context.Context, _ *containersapi.ListContainersRequest) (*containersapi.ListContainersResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if ns := strings.Join(md.Get("containerd-namespace"), ","); ns == "hang" {
		select {
		case <-ctx.Done():
		case <-f.hang:
		}
		return nil, ctx.Err()
	} else if ns != "default" {
		return &containersapi.ListContainersResponse{}, nil
	}
	rt := &containersapi.Container_Runtime{Name: "io.containerd.runc.v2"}
	return &containersapi.ListContainersResponse{Containers: []*containersapi.Container{
		{ID: "one", Image: "example.com/one:1", Runtime: rt, CreatedAt: timestamppb.Now(), UpdatedAt: timestamppb.Now()},
		{ID: "two", Runtime: rt, CreatedAt: timestamppb.Now(), UpdatedAt: timestamppb.Now()},
	}}, nil
}

func (fakeContainers) Get(_ context.Context, req *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	return nil, status.Errorf(codes.NotFound, "container %q: not found", req.ID)
}

type fakeImages struct {
	imagesapi.UnimplementedImagesServer
}

func (fakeImages) List(context.Context, *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	return &imagesapi.ListImagesResponse{Images: []*imagesapi.Image{{Name: "example.com/one:1", Target: &types.Descriptor{}}}}, nil
}

func (fakeImages) Update(_ context.Context, req *imagesapi.UpdateImageRequest) (*imagesapi.UpdateImageResponse, error) {
	return nil, status.Errorf(codes.NotFound, "image %q: not found", req.Image.Name)
}

func (fakeImages) Get(_ context.Context, req *imagesapi.GetImageRequest) (*imagesapi.GetImageResponse, error) {
	return nil, status.Errorf(codes.NotFound, "image %q: not found", req.Name)
}

type fakeLeases struct {
	leasesapi.UnimplementedLeasesServer
	log chan string
}

func (f fakeLeases) Create(_ context.Context, req *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	f.log <- "create " + req.ID
	return &leasesapi.CreateResponse{Lease: &leasesapi.Lease{ID: req.ID}}, nil
}

func (f fakeLeases) Delete(_ context.Context, req *leasesapi.DeleteRequest) (*emptypb.Empty, error) {
	f.log <- "delete " + req.ID
	return &emptypb.Empty{}, nil
}

type fakeNamespaces struct {
	namespacesapi.UnimplementedNamespacesServer
}

func (fakeNamespaces) Get(context.Context, *namespacesapi.GetNamespaceRequest) (*namespacesapi.GetNamespaceResponse, error) {
	return nil, status.Error(codes.NotFound, "no namespace")
}

func (fakeNamespaces) List(context.Context, *namespacesapi.ListNamespacesRequest) (*namespacesapi.ListNamespacesResponse, error) {
	return &namespacesapi.ListNamespacesResponse{Namespaces: []*namespacesapi.Namespace{{Name: "default"}, {Name: "k8s.io"}}}, nil
}

type fakeTasks struct {
	tasksapi.UnimplementedTasksServer
}

func (fakeTasks) List(context.Context, *tasksapi.ListTasksRequest) (*tasksapi.ListTasksResponse, error) {
	return &tasksapi.ListTasksResponse{Tasks: []*task.Process{{ID: "one", Pid: 42, Status: task.Status_RUNNING}}}, nil
}

func (fakeTasks) ListPids(_ context.Context, req *tasksapi.ListPidsRequest) (*tasksapi.ListPidsResponse, error) {
	return nil, status.Errorf(codes.NotFound, "task %q: not found", req.ContainerID)
}

func (fakeTasks) Kill(context.Context, *tasksapi.KillRequest) (*emptypb.Empty, error) {
	return nil, status.Error(codes.Unavailable, "shim is gone")
}

type fakeVersion struct {
	versionapi.UnimplementedVersionServer
}

func (fakeVersion) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: "v9", Revision: "abc"}, nil
}

type fakeIntrospection struct {
	introspectionapi.UnimplementedIntrospectionServer
}

func (fakeIntrospection) Server(context.Context, *emptypb.Empty) (*introspectionapi.ServerResponse, error) {
	return &introspectionapi.ServerResponse{UUID: "u-u"}, nil
}

// startFake serves on a socket and returns its path and what happened to leases.
func startFake(t *testing.T) (address string, leases chan string) {
	t.Helper()
	address = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	leases = make(chan string, 16)
	srv := grpc.NewServer()
	containersapi.RegisterContainersServer(srv, fakeContainers{hang: make(chan struct{})})
	imagesapi.RegisterImagesServer(srv, fakeImages{})
	leasesapi.RegisterLeasesServer(srv, fakeLeases{log: leases})
	namespacesapi.RegisterNamespacesServer(srv, fakeNamespaces{})
	tasksapi.RegisterTasksServer(srv, fakeTasks{})
	versionapi.RegisterVersionServer(srv, fakeVersion{})
	introspectionapi.RegisterIntrospectionServer(srv, fakeIntrospection{})
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	return address, leases
}

// ctr runs a command line and returns its outputs and status.
func ctr(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	t.Setenv("CONTAINERD_NAMESPACE", "")
	os.Unsetenv("CONTAINERD_NAMESPACE")
	capture := func(f **os.File) func() string {
		old := *f
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		*f = w
		text := make(chan string)
		go func() {
			b, _ := io.ReadAll(r)
			text <- string(b)
		}()
		return func() string {
			*f = old
			w.Close()
			defer r.Close()
			return <-text
		}
	}
	out, errs := capture(&os.Stdout), capture(&os.Stderr)
	code = run(t.Context(), append([]string{"ctr"}, args...))
	return out(), errs(), code
}

func TestConnectionErrorsSayWhatToDo(t *testing.T) {
	dead := filepath.Join(t.TempDir(), "dead")
	l, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for address, want := range map[string]string{
		"/nonexistent/c.sock": "there is no such socket: start the daemon",
		dead:                  "connection refused: nothing listens there",
	} {
		_, stderr, code := ctr(t, "-a", address, "containers", "ls")
		if code != 1 || !strings.Contains(stderr, address) || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("status %d, stderr %q, want one line with %q and %q", code, stderr, address, want)
		}
	}
}

func TestErrorsAndStatus(t *testing.T) {
	address, leases := startFake(t)
	for _, tc := range []struct {
		line string
		code int
		want string
	}{
		{"run missing id", 1, `image "missing": not found`},
		{"containers info x", 1, `container "x": not found`},
		{"tasks kill -s KILL one", 1, "shim is gone"},
		{"contianers ls", 3, `did you mean "containers"?`},
		{"images lst", 3, `did you mean "list"?`},
		{"containers ls --formta json", 1, `did you mean "format"?`},
		{"containers ls --format xml", 1, "none of table, json and a Go template"},
		{"containers ls --format {{.Nope}}", 1, "there is no field Nope; there are .ID, .Labels, .Image"},
		{"df everything", 1, "takes no arguments"},
		{"run --frob x y", 1, "unknown flag --frob"},
		{"tasks exec x true", 1, `"exec-id"`},
		{"containers checkpoint x b", 1, `container "x": not found`},
		{"sandboxes ls", 1, "sandbox"},
		{"--timeout 50ms -n hang containers ls", 1, "deadline exceeded"},
		{"images pull --skip-verify x", 1, "hosts.toml"},
	} {
		stdout, stderr, code := ctr(t, append([]string{"-a", address}, strings.Fields(tc.line)...)...)
		if code != tc.code || !strings.Contains(stderr, tc.want) || strings.Count(stderr, "\n") != 1 || stdout != "" {
			t.Errorf("ctr %s: status %d, stdout %q, stderr %q; want status %d and one line with %q", tc.line, code, stdout, stderr, tc.code, tc.want)
		}
	}
	// The failed run gave its lease back.
	if made, gone := <-leases, <-leases; strings.TrimPrefix(made, "create ") != strings.TrimPrefix(gone, "delete ") {
		t.Errorf("leases: %s, then %s", made, gone)
	}
}

func TestOutputs(t *testing.T) {
	address, _ := startFake(t)
	for _, tc := range []struct{ line, want string }{
		{"containers ls", "CONTAINER    IMAGE                RUNTIME                  \none          example.com/one:1    io.containerd.runc.v2    \ntwo          -                    io.containerd.runc.v2    \n"},
		{"c ls -q", "one\ntwo\n"},
		{"-n other c ls", "CONTAINER    IMAGE    RUNTIME    \n"},
		{"-n other c ls --format json", "[]\n"},
		{"c ls --format {{.ID}}={{.Image}}", "one=example.com/one:1\ntwo=\n"},
		{"t ls", "TASK    PID    STATUS    \none     42     RUNNING\n"},
		{"t ls --format json", "[\n    {\n        \"ID\": \"one\",\n        \"PID\": 42,\n        \"Status\": \"RUNNING\",\n        \"ExitStatus\": 0\n    }\n]\n"},
		{"ns ls", "NAME    LABELS \ndefault        \nk8s.io         \n"},
		{"version --format {{.Server.Version}}", "v9\n"},
		{"i ls -q", "example.com/one:1\n"},
		{"__complete -- tasks kill o", "one\n"},
		{"__complete -- ta", "tasks\tManage tasks\n"},
		{"__complete -- run --rm exam", "example.com/one:1\n"},
		{"__complete -- run example.com/one:1 t", ""},
		{"__complete -- -n k", "k8s.io\n"},
		{"__complete -- containers rm t", "two\n"},
		{"__complete -- containers ls --qu", "--quiet\tPrint only the container id\n"},
		{"__complete -- run image id ls --e", ""},
		{"__complete -- tasks kill --signal SIGK", "SIGKILL\n"},
		{"__complete -- nonsense x", ""},
		{"__complete -- tasks kill --signal=SIGK", "--signal=SIGKILL\n"},
		{"__complete -- t rm one o", "one\n"},
		{"__complete -- -n k8s.io containers rm t", ""},
		{"__complete -- --namespace=k", "--namespace=k8s.io\n"},
		{"__complete -- run --cap-add CAP_SYS_T", "CAP_SYS_TIME\nCAP_SYS_TTY_CONFIG\n"},
		{"__complete -- -a /nonexistent run --cap-drop CAP_CHO", "CAP_CHOWN\n"},
		{"__complete -- -a /nonexistent tasks rm ", ""},
		{"__complete -- images pull --all-m", ""},
	} {
		stdout, stderr, code := ctr(t, append([]string{"-a", address}, strings.Fields(tc.line)...)...)
		if code != 0 || stdout != tc.want {
			t.Errorf("ctr %s: status %d, stdout\n%q, want\n%q, stderr %q", tc.line, code, stdout, tc.want, stderr)
		}
	}
}

// What is missing is explained: a name like it, another namespace, no task.
func TestSuggestions(t *testing.T) {
	address, _ := startFake(t)
	for _, tc := range []struct{ line, want string }{
		{"images label example.com/one:2 a=b", `did you mean "example.com/one:1"?`},
		{"images label one a=b", `did you mean "example.com/one:1"?`},
		{"run one id", `did you mean "example.com/one:1"?`},
		{"containers info oen", `did you mean "one"?`},
		{"-n k8s.io containers info one", "it is in default: use -n default"},
		{"tasks ps two", "'ctr tasks start two' starts one"},
		{"sandboxes ls", "the daemon does not offer containerd.services.sandbox.v1.Store"},
		{"images label busybox a=b", "'ctr images pull docker.io/library/busybox:latest' may fetch it"},
		{"images label other.example.com/x/one:1 a=b", `did you mean "example.com/one:1"?`},
		{"containers info something-else-entirely", `container "something-else-entirely": not found`},
	} {
		stdout, stderr, code := ctr(t, append([]string{"-a", address}, strings.Fields(tc.line)...)...)
		if code != 1 || !strings.Contains(stderr, tc.want) || strings.Count(stderr, "\n") != 1 || stdout != "" {
			t.Errorf("ctr %s: status %d, stdout %q, stderr %q; want one line with %q", tc.line, code, stdout, stderr, tc.want)
		}
	}
}

// The tables of completion speak of commands and flags that exist.
func TestCompletionTables(t *testing.T) {
	root := rootCommand()
	for path := range operandsOf() {
		cmd := root
		for word := range strings.FieldsSeq(path) {
			if cmd = cmd.Command(word); cmd == nil || cmd.Name != word {
				t.Errorf("there is no command %q (by that name, not an alias)", path)
				break
			}
		}
	}
	flags := map[string]bool{}
	var walk func(*cli.Command)
	walk = func(cmd *cli.Command) {
		for _, f := range cmd.Flags {
			flags[f.Names()[0]] = true
		}
		for _, sub := range cmd.Commands {
			walk(sub)
		}
	}
	walk(root)
	for name := range flagValuesOf() {
		if !flags[name] {
			t.Errorf("there is no flag --%s", name)
		}
	}
	for name := range flagWordsOf() {
		if !flags[name] {
			t.Errorf("there is no flag --%s", name)
		}
	}
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		stdout, _, code := ctr(t, "completion", shell)
		if code != 0 || !strings.Contains(stdout, " __complete -- ") {
			t.Errorf("completion %s: status %d, %q", shell, code, stdout)
		}
	}
	if stdout, _, code := ctr(t, "--help"); code != 0 || !strings.Contains(stdout, "Examples:") || strings.Contains(stdout, "__complete") {
		t.Errorf("help: status %d\n%s", code, stdout)
	}
}
