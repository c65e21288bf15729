package compat

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	contenttest "github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/core/images"
	imagearchive "github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshottest "github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/core/transfer/archive"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// daemon starts a private daemon of ours and returns its address.
func daemon(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	// A socket's path is short; t.TempDir may be long.
	dir, err := os.MkdirTemp("", "berth-compat-")
	if err != nil {
		t.Fatal(err)
	}
	addr := dir + "/c.sock"
	config := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n[plugins.'io.containerd.internal.v1.opt']\npath = %q\n",
		dir+"/root", dir+"/state", addr, addr+".ttrpc", dir+"/opt")
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(filepath.Join(oursBin, "containerd"), "-c", dir+"/config.toml")
	cmd.Env = append(os.Environ(), "PATH="+oursBin+":"+peerBin+":/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", log.String())
		}
		b, _ := os.ReadFile("/proc/self/mountinfo")
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); strings.HasPrefix(f[4], dir+"/") {
				t.Errorf("mount left behind: %s", f[4])
				unix.Unmount(f[4], unix.MNT_DETACH)
			}
		}
		os.RemoveAll(dir)
	})
	return addr
}

// connect returns their client on our daemon, with a context in a namespace.
func connect(t *testing.T, addr string) (*client.Client, context.Context) {
	t.Helper()
	c, err := client.New(addr, client.WithTimeout(20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ns := "compat-" + strings.ToLower(strings.ReplaceAll(strings.ReplaceAll(t.Name(), "/", "-"), "_", "-"))
	return c, namespaces.WithNamespace(t.Context(), ns[:min(len(ns), 70)])
}

const imageName = "example.com/busybox:1"

// archiveOf makes the test image with our tool, a program of the main module.
func archiveOf(t *testing.T) *os.File {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	cmd := exec.Command("go", "run", "./test/mkimage", "-busybox", "-name", imageName, "-o", file, busybox)
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// image imports and unpacks the test image.
func image(t *testing.T, c *client.Client, ctx context.Context) client.Image {
	t.Helper()
	imgs, err := c.Import(ctx, archiveOf(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(imgs) != 1 || imgs[0].Name != imageName {
		t.Fatalf("imported %+v", imgs)
	}
	img := client.NewImage(c, imgs[0])
	if err := img.Unpack(ctx, ""); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestContainerLife(t *testing.T) {
	c, ctx := connect(t, daemon(t))
	img := image(t, c, ctx)
	events, errs := c.Subscribe(ctx)

	ctr, err := c.NewContainer(ctx, "life", client.WithImage(img), client.WithNewSnapshot("life", img),
		client.WithNewSpec(oci.WithImageConfig(img), oci.WithProcessArgs("sh", "-c", "read line; echo got $line; exit 3")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.NewContainer(ctx, "life", client.WithNewSpec()); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second container of the name: %v", err)
	}
	var out, errOut bytes.Buffer
	in, inWriter := io.Pipe()
	task, err := ctr.NewTask(ctx, cio.NewCreator(cio.WithStreams(in, &out, &errOut)))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := task.Status(ctx); err != nil || s.Status != client.Created || task.Pid() == 0 {
		t.Errorf("before the start: %+v %v, pid %d", s, err, task.Pid())
	}
	if err := ctr.Delete(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a container with a task was deleted: %v", err)
	}
	exit, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if pids, err := task.Pids(ctx); err != nil || len(pids) == 0 || pids[0].Pid != task.Pid() {
		t.Errorf("pids %v %v, want %d first", pids, err, task.Pid())
	}
	if _, err := task.Delete(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a running task was deleted: %v", err)
	}
	if _, err := task.Metrics(ctx); err != nil {
		t.Error(err)
	}
	io.WriteString(inWriter, "word\n")
	if st := <-exit; st.Error() != nil || st.ExitCode() != 3 {
		t.Errorf("exit %d, %v", st.ExitCode(), st.Error())
	}
	inWriter.Close()
	if st, err := task.Delete(ctx); err != nil || st.ExitCode() != 3 {
		t.Errorf("delete: %v %v", st, err)
	}
	if out.String() != "got word\n" || errOut.Len() != 0 {
		t.Errorf("stdout %q, stderr %q", out.String(), errOut.String())
	}
	if err := ctr.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		t.Fatal(err)
	}
	// The shim's events and the daemon's are each in order, not the two together.
	records := []string{"/snapshot/prepare", "/containers/create", "/containers/delete"}
	tasks := []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}
	deadline := time.After(10 * time.Second)
	for len(records)+len(tasks) > 0 {
		select {
		case e := <-events:
			if len(records) > 0 && e.Topic == records[0] {
				records = records[1:]
			}
			if len(tasks) > 0 && e.Topic == tasks[0] {
				tasks = tasks[1:]
			}
		case err := <-errs:
			t.Fatalf("events ended: %v", err)
		case <-deadline:
			t.Fatalf("events that did not come: %v %v", records, tasks)
		}
	}
}

func TestExecKillPause(t *testing.T) {
	c, ctx := connect(t, daemon(t))
	img := image(t, c, ctx)
	ctr, err := c.NewContainer(ctx, "exec", client.WithNewSnapshot("exec", img), client.WithNewSpec(oci.WithImageConfig(img), oci.WithProcessArgs("sleep", "1000")))
	if err != nil {
		t.Fatal(err)
	}
	task, err := ctr.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	exit, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	spec, err := ctr.Spec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		p := *spec.Process
		p.Args = []string{"sh", "-c", fmt.Sprintf("echo exec %d; exit %d", i, i)}
		var out, errOut bytes.Buffer
		ex, err := task.Exec(ctx, fmt.Sprint("e", i), &p, cio.NewCreator(cio.WithStreams(strings.NewReader(""), &out, &errOut)))
		if err != nil {
			t.Fatal(err)
		}
		st, err := ex.Wait(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := ex.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if s := <-st; s.ExitCode() != uint32(i) {
			t.Errorf("exec %d: exit %d %v", i, s.ExitCode(), s.Error())
		}
		if _, err := ex.Delete(ctx); err != nil {
			t.Error(err)
		}
		if want := fmt.Sprintf("exec %d\n", i); out.String() != want {
			t.Errorf("exec wrote %q, want %q", out.String(), want)
		}
	}
	missing := *spec.Process
	missing.Args = []string{"/bin/nonesuch"}
	ex, err := task.Exec(ctx, "missing", &missing, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	if err := ex.Start(ctx); err == nil || !strings.Contains(err.Error(), "nonesuch") {
		t.Errorf("an exec of a missing program: %v", err)
	}
	ex.Delete(ctx)

	if err := task.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if s, err := task.Status(ctx); err != nil || s.Status != client.Paused {
		t.Errorf("paused: %v %v", s, err)
	}
	if err := task.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := <-exit; st.ExitCode() != 137 {
		t.Errorf("killed: %d %v", st.ExitCode(), st.Error())
	}
	if err := task.Kill(ctx, syscall.SIGKILL); !errdefs.IsNotFound(err) {
		t.Errorf("a second kill: %v", err)
	}
	if _, err := task.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if err := ctr.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		t.Fatal(err)
	}
	if _, err := c.LoadContainer(ctx, "exec"); !errdefs.IsNotFound(err) {
		t.Errorf("a deleted container: %v", err)
	}
}

func TestImagesAndLeases(t *testing.T) {
	c, ctx := connect(t, daemon(t))
	img := image(t, c, ctx)
	if ok, err := img.IsUnpacked(ctx, ""); err != nil || !ok {
		t.Errorf("unpacked: %v %v", ok, err)
	}
	if n, err := img.Size(ctx); err != nil || n == 0 {
		t.Errorf("size %d %v", n, err)
	}
	store := c.ImageService()
	rec, err := store.Get(ctx, imageName)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Create(ctx, rec); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	rec.Labels = map[string]string{"a": "b"}
	if up, err := store.Update(ctx, rec, "labels.a"); err != nil || up.Labels["a"] != "b" {
		t.Errorf("update: %v %v", up.Labels, err)
	}
	if l, err := store.List(ctx, `name~=busybox,labels.a==b`); err != nil || len(l) != 1 {
		t.Errorf("filtered: %v %v", l, err)
	}
	var b bytes.Buffer
	if err := c.Export(ctx, &b, imagearchive.WithImage(store, imageName)); err != nil || b.Len() == 0 {
		t.Errorf("export: %d bytes, %v", b.Len(), err)
	}

	// A lease keeps what the image held.
	l, err := c.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.LeasesService().AddResource(ctx, l, leases.Resource{ID: rec.Target.Digest.String(), Type: "content"}); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(ctx, imageName, images.SynchronousDelete()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ContentStore().Info(ctx, rec.Target.Digest); err != nil {
		t.Errorf("the leased manifest: %v", err)
	}
	if err := c.LeasesService().Delete(ctx, l, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ContentStore().Info(ctx, rec.Target.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("the manifest without lease and image: %v", err)
	}
	if err := c.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		return fmt.Errorf("snapshot %s is left", i.Name)
	}); err != nil {
		t.Error(err)
	}
}

func TestTransferImport(t *testing.T) {
	c, ctx := connect(t, daemon(t))
	src := archive.NewImageImportStream(archiveOf(t), "")
	dst := transferimage.NewStore(imageName, transferimage.WithUnpack(platforms.DefaultSpec(), "overlayfs"), transferimage.WithNamedPrefix("example.com", false))
	if err := c.Transfer(ctx, src, dst); err != nil {
		t.Fatal(err)
	}
	img, err := c.GetImage(ctx, imageName)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := img.IsUnpacked(ctx, "overlayfs"); err != nil || !ok {
		t.Errorf("unpacked: %v %v", ok, err)
	}
}

// TestContentSuite runs containerd's own contract for content stores.
func TestContentSuite(t *testing.T) {
	addr := daemon(t)
	c, _ := connect(t, addr)
	n := 0
	contenttest.ContentSuite(t, "berth", func(ctx context.Context, root string) (context.Context, content.Store, func() error, error) {
		n++
		ctx = namespaces.WithNamespace(ctx, fmt.Sprint("content-", n))
		l, err := c.LeasesService().Create(ctx, leases.WithID("suite"))
		if err != nil {
			return nil, nil, nil, err
		}
		ctx = leases.WithLease(ctx, l.ID)
		return ctx, c.ContentStore(), func() error {
			return c.LeasesService().Delete(ctx, l, leases.SynchronousDelete)
		}, nil
	})
}

// TestSnapshotSuite runs containerd's own contract for snapshotters.
func TestSnapshotSuite(t *testing.T) {
	addr := daemon(t)
	c, _ := connect(t, addr)
	for _, name := range []string{"overlayfs", "native"} {
		n := 0
		snapshottest.SnapshotterSuite(t, name, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
			n++
			// The suite uses a namespace of its own, the same in every test.
			return inNamespace{c.SnapshotService(name), fmt.Sprint(name, "-", n)}, func() error { return nil }, nil
		})
	}
}

func TestErrors(t *testing.T) {
	c, ctx := connect(t, daemon(t))
	if _, err := c.ImageService().Get(ctx, "example.com/none:1"); !errdefs.IsNotFound(err) {
		t.Errorf("image: %v", err)
	}
	if _, err := c.ContentStore().Info(ctx, digest.FromString("none")); !errdefs.IsNotFound(err) {
		t.Errorf("blob: %v", err)
	}
	if _, err := c.ContentStore().Info(ctx, "sha256:short"); err == nil {
		t.Error("a malformed digest was taken")
	}
	if _, err := c.SnapshotService("nonesuch").Stat(ctx, "x"); !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
		t.Errorf("snapshotter: %v", err)
	}
	if _, err := c.SnapshotService("overlayfs").Prepare(ctx, "x", "no-parent"); !errdefs.IsNotFound(err) {
		t.Errorf("parent: %v", err)
	}
	if err := c.NamespaceService().Create(ctx, "bad name", nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("namespace: %v", err)
	}
	if _, err := c.ImageService().List(context.Background()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no namespace: %v", err)
	}
	if _, err := c.ImageService().List(ctx, "name=~["); !errdefs.IsInvalidArgument(err) {
		t.Errorf("filter: %v", err)
	}
	desc := ispec.Descriptor{Digest: digest.FromString("right"), Size: 5}
	err := content.WriteBlob(ctx, c.ContentStore(), "ref", strings.NewReader("wrong"), desc)
	if err == nil {
		t.Error("a blob with other bytes than its digest was taken")
	}
}

// inNamespace puts every call of a snapshotter into a namespace.
type inNamespace struct {
	snapshots.Snapshotter
	namespace string
}

func (s inNamespace) ctx(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, s.namespace)
}
func (s inNamespace) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	return s.Snapshotter.Stat(s.ctx(ctx), key)
}
func (s inNamespace) Update(ctx context.Context, info snapshots.Info, paths ...string) (snapshots.Info, error) {
	return s.Snapshotter.Update(s.ctx(ctx), info, paths...)
}
func (s inNamespace) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return s.Snapshotter.Usage(s.ctx(ctx), key)
}
func (s inNamespace) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return s.Snapshotter.Mounts(s.ctx(ctx), key)
}
func (s inNamespace) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.Prepare(s.ctx(ctx), key, parent, opts...)
}
func (s inNamespace) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.View(s.ctx(ctx), key, parent, opts...)
}
func (s inNamespace) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return s.Snapshotter.Commit(s.ctx(ctx), name, key, opts...)
}
func (s inNamespace) Remove(ctx context.Context, key string) error {
	return s.Snapshotter.Remove(s.ctx(ctx), key)
}
func (s inNamespace) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.Snapshotter.Walk(s.ctx(ctx), fn, filters...)
}

// Close does nothing: the client is shared.
func (s inNamespace) Close() error { return nil }
