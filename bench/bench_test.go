package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/internal/spec"
	"berth/test/testimage"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"
)

// server is the daemon that all benchmarks of a run share.
var server struct {
	sync.Once
	err    error
	conn   *grpc.ClientConn
	dir    string
	daemon *exec.Cmd
	addr   string
	parent string // chain ID of the image that is unpacked
}

const namespace = "berth-bench"

func TestMain(m *testing.M) {
	code := m.Run()
	if server.conn != nil {
		server.conn.Close()
	}
	if server.daemon != nil {
		server.daemon.Process.Signal(syscall.SIGTERM)
		server.daemon.Wait()
	}
	if server.dir != "" {
		os.RemoveAll(server.dir)
	}
	os.Exit(code)
}

func connect(b *testing.B) (*grpc.ClientConn, context.Context) {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("containers need root")
	}
	server.Do(func() { server.err = start() })
	if server.err != nil {
		b.Fatal(server.err)
	}
	// The lease keeps the collector from what no record names yet.
	return server.conn, metadata.AppendToOutgoingContext(b.Context(), "containerd-namespace", namespace, "containerd-lease", namespace)
}

func start() error {
	bin := programs()
	var err error
	if server.dir, err = os.MkdirTemp("", "berth-bench-"); err != nil {
		return err
	}
	server.addr = os.Getenv("BENCH_ADDRESS")
	if server.addr == "" {
		server.addr = server.dir + "/c.sock"
		config := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n", server.dir+"/root", server.dir+"/state", server.addr, server.addr+".ttrpc")
		if err := os.WriteFile(server.dir+"/config.toml", []byte(config), 0o600); err != nil {
			return err
		}
		cmd := exec.Command(filepath.Join(bin, "containerd"), "-c", server.dir+"/config.toml")
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("%w (run: make build)", err)
		}
		server.daemon = cmd
	}
	server.conn, err = grpc.NewClient("unix://"+server.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "containerd-namespace", namespace), 30*time.Second)
	defer cancel()
	if _, err := leasesapi.NewLeasesClient(server.conn).Create(ctx, &leasesapi.CreateRequest{ID: namespace}); err != nil {
		return err
	}
	// The image has one static program, the demo's.
	program := filepath.Join(server.dir, "hello")
	build := exec.Command("go", "build", "-o", program, "berth/test/hello")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build hello: %w: %s", err, out)
	}
	body, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	layer, err := testimage.Layer(testimage.File("hello", 0o755, body), testimage.Dir("proc", 0o555), testimage.Dir("sys", 0o555), testimage.Dir("dev", 0o755))
	if err != nil {
		return err
	}
	server.parent = digest.FromBytes(layer).String()
	var archive bytes.Buffer
	if err := testimage.WriteOCI(&archive, testimage.Image{Names: []string{"example.com/hello:1"}, Layers: [][]byte{layer}}); err != nil {
		return err
	}
	return importImage(ctx, bin, archive.Bytes())
}

func importImage(ctx context.Context, bin string, archive []byte) error {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "ctr"), "-a", server.addr, "-n", namespace, "images", "import", "-")
	cmd.Stdin = bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ctr images import: %w: %s", err, out)
	}
	return nil
}

func BenchmarkContentWrite(b *testing.B) {
	conn, ctx := connect(b)
	client := contentapi.NewContentClient(conn)
	for _, size := range []int{4 << 10, 1 << 20, 32 << 20} {
		b.Run(fmt.Sprint(size>>10, "KiB"), func(b *testing.B) {
			data := make([]byte, size)
			rand.Read(data)
			b.SetBytes(int64(size))
			n := 0
			for b.Loop() {
				n++
				copy(data, fmt.Sprint(b.Name(), n, time.Now().UnixNano()))
				if err := write(ctx, client, data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func write(ctx context.Context, client contentapi.ContentClient, data []byte) error {
	d := digest.FromBytes(data)
	stream, err := client.Write(ctx)
	if err != nil {
		return err
	}
	const chunk = 1 << 20
	for off := 0; off < len(data); off += chunk {
		part := data[off:min(len(data), off+chunk)]
		req := &contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Ref: d.String(), Total: int64(len(data)), Offset: int64(off), Data: part}
		if off+len(part) == len(data) {
			req.Action, req.Expected = contentapi.WriteAction_COMMIT, d.String()
		}
		if err := stream.Send(req); err != nil && err != io.EOF {
			return err
		}
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
	_, err = client.Delete(ctx, &contentapi.DeleteContentRequest{Digest: d.String()})
	return err
}

// BenchmarkUnpack imports an image whose layer is new each time: written, read
// once, decompressed, hashed twice, untarred and synced.
func BenchmarkUnpack(b *testing.B) {
	_, ctx := connect(b)
	bin := programs()
	const files, size = 400, 20_000
	body := bytes.Repeat([]byte("some text that can be compressed, and a number "), size/47)
	b.SetBytes(files * int64(len(body)))
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		var entries []testimage.Entry
		for i := range files {
			entries = append(entries, testimage.File(fmt.Sprintf("f%d", i), 0o644, append([]byte(fmt.Sprint(n, i, time.Now().UnixNano())), body...)))
		}
		layer, err := testimage.Layer(entries...)
		if err != nil {
			b.Fatal(err)
		}
		var archive bytes.Buffer
		if err := testimage.WriteOCI(&archive, testimage.Image{Names: []string{"example.com/unpack:1"}, Layers: [][]byte{layer}}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := importImage(ctx, bin, archive.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSnapshotPrepare(b *testing.B) {
	conn, ctx := connect(b)
	client := snapshotsapi.NewSnapshotsClient(conn)
	n := 0
	for b.Loop() {
		n++
		key := fmt.Sprint("prepare-", n)
		if _, err := client.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "overlayfs", Key: key, Parent: server.parent}); err != nil {
			b.Fatal(err)
		}
		if _, err := client.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: "overlayfs", Key: key}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkContainerCreate(b *testing.B) {
	conn, ctx := connect(b)
	client := containersapi.NewContainersClient(conn)
	for _, clients := range []int{1, 16} {
		b.Run(fmt.Sprint(clients, "clients"), func(b *testing.B) {
			b.SetParallelism(max(1, clients/2))
			var n sync.Map
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					id := fmt.Sprintf("create-%p-%d", pb, i)
					if _, dup := n.LoadOrStore(id, true); dup {
						b.Error("two containers of one name")
					}
					if err := record(ctx, client, id, ""); err != nil {
						b.Error(err)
						return
					}
					if _, err := client.Delete(ctx, &containersapi.DeleteContainerRequest{ID: id}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// record makes the record of a container that runs the image's program.
func record(ctx context.Context, client containersapi.ContainersClient, id, snapshot string) error {
	s := spec.Default(namespace, id, nil)
	s.Process.Args = []string{"/hello", "-quiet"}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = client.Create(ctx, &containersapi.CreateContainerRequest{Container: &containersapi.Container{
		ID: id, Image: "example.com/hello:1", Runtime: &containersapi.Container_Runtime{Name: "io.containerd.runc.v2"},
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: data}, Snapshotter: "overlayfs", SnapshotKey: snapshot,
	}})
	return err
}

func BenchmarkWholeLife(b *testing.B) {
	conn, ctx := connect(b)
	n := 0
	for b.Loop() {
		n++
		if err := life(ctx, conn, fmt.Sprint("life-", n)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWholeLife8Clients(b *testing.B) {
	conn, ctx := connect(b)
	b.SetParallelism(4) // of two processors
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if err := life(ctx, conn, fmt.Sprintf("life8-%p-%d", pb, i)); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func life(ctx context.Context, conn *grpc.ClientConn, id string) error {
	snapshots, containers, tasks := snapshotsapi.NewSnapshotsClient(conn), containersapi.NewContainersClient(conn), tasksapi.NewTasksClient(conn)
	prepared, err := snapshots.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "overlayfs", Key: id, Parent: server.parent})
	if err != nil {
		return err
	}
	if err := record(ctx, containers, id, id); err != nil {
		return err
	}
	if _, err := tasks.Create(ctx, &tasksapi.CreateTaskRequest{ContainerID: id, Rootfs: prepared.Mounts}); err != nil {
		return err
	}
	waited := make(chan error, 1)
	go func() {
		resp, err := tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: id})
		if err == nil && resp.ExitStatus != 0 {
			err = fmt.Errorf("exit status %d", resp.ExitStatus)
		}
		waited <- err
	}()
	if _, err := tasks.Start(ctx, &tasksapi.StartRequest{ContainerID: id}); err != nil {
		return err
	}
	if err := <-waited; err != nil {
		return err
	}
	if _, err := tasks.Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: id}); err != nil {
		return err
	}
	if _, err := containers.Delete(ctx, &containersapi.DeleteContainerRequest{ID: id}); err != nil {
		return err
	}
	_, err = snapshots.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: "overlayfs", Key: id})
	return err
}
