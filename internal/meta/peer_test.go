package meta

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/content"
	"berth/internal/events"
	"berth/internal/object"
	"berth/internal/snapshot"

	"github.com/opencontainers/go-digest"
)

// peer is a real containerd. The test that uses it runs where the directory of
// its binaries is in CONTAINERD_BIN.
type peer struct {
	bin, dir string
	cmd      *exec.Cmd
}

func newPeer(t *testing.T) *peer {
	bin := os.Getenv("CONTAINERD_BIN")
	if bin == "" {
		t.Skip("CONTAINERD_BIN does not name the directory of a containerd and its ctr")
	}
	if os.Geteuid() != 0 {
		t.Skip("containerd needs root")
	}
	p := &peer{bin: bin, dir: t.TempDir()}
	config := `version = 3
root = "` + p.dir + `/root"
state = "` + p.dir + `/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[grpc]
address = "` + p.dir + `/c.sock"
[plugins."io.containerd.gc.v1.scheduler"]
startup_delay = "1h" # what the test makes, step by step, is garbage at first
`
	if err := os.WriteFile(p.dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	return p
}

func (p *peer) start(t *testing.T) {
	t.Helper()
	log, err := os.Create(p.dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(p.bin+"/containerd", "-c", p.dir+"/config.toml")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		if c, err := net.Dial("unix", p.dir+"/c.sock"); err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			out, _ := os.ReadFile(p.dir + "/log")
			t.Fatalf("containerd does not listen:\n%s", out)
		}
		time.Sleep(20 * time.Millisecond) // deliberate: its socket has no other sign
	}
}

func (p *peer) stop() {
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}

func (p *peer) ctr(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(p.bin+"/ctr", append([]string{"-a", p.dir + "/c.sock", "-n", "ns"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// A database that containerd wrote opens here, with everything in it; what is
// written here is there for containerd when it takes the database back.
func TestTakeOverAndHandBack(t *testing.T) {
	p := newPeer(t)
	p.start(t)
	blob := "peer's bytes"
	d := digest.FromString(blob)
	file := filepath.Join(p.dir, "blob")
	if err := os.WriteFile(file, []byte(blob), 0o600); err != nil {
		t.Fatal(err)
	}
	p.ctr(t, "namespaces", "create", "empty", "k=v")
	p.ctr(t, "leases", "create", "--id", "lease", "x=y")
	ingest := exec.Command(p.bin+"/ctr", "-a", p.dir+"/c.sock", "-n", "ns", "content", "ingest", "--expected-digest", d.String(), "ref")
	ingest.Stdin = strings.NewReader(blob)
	if out, err := ingest.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p.ctr(t, "content", "label", d.String(), "containerd.io/gc.root=x")
	p.ctr(t, "snapshots", "--snapshotter", "native", "prepare", "base-key")
	p.ctr(t, "snapshots", "--snapshotter", "native", "commit", "base", "base-key")
	p.ctr(t, "snapshots", "--snapshotter", "native", "prepare", "child", "base")
	p.ctr(t, "snapshots", "--snapshotter", "native", "label", "child", "containerd.io/gc.root=x")
	rootfs := filepath.Join(p.dir, "rootfs")
	if err := os.Mkdir(rootfs, 0o755); err != nil {
		t.Fatal(err)
	}
	p.ctr(t, "containers", "create", "--rootfs", "--label", "l=m", rootfs, "theirs", "true")
	p.stop()

	dir := filepath.Join(p.dir, "root", "io.containerd.metadata.v1.bolt")
	store, err := content.OpenLocal(content.LocalOptions{Root: filepath.Join(p.dir, "root", "io.containerd.content.v1.content")})
	if err != nil {
		t.Fatal(err)
	}
	backend := newFakeSnapshots()
	parent := ""
	for _, s := range []object.SnapshotInfo{{Name: "ns/2/base", Kind: object.SnapshotCommitted}, {Name: "ns/3/child", Kind: object.SnapshotActive}} {
		s.Parent, parent = parent, s.Name
		backend.all[s.Name] = s
	}
	db, err := Open(t.Context(), Options{Path: filepath.Join(dir, "meta.db"), Content: store, Events: events.New(),
		Snapshotters: map[string]snapshot.Backend{"native": backend}, GC: &GCOptions{StartupDelay: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	s := db.Scope("ns", "")
	if r := db.Report(); r.Damage != nil || len(r.Unreadable) != 0 {
		t.Errorf("report: %+v", r)
	}
	if ns := must(db.Namespaces().Get(t.Context(), "empty"))(t); ns.Labels["k"] != "v" {
		t.Errorf("namespace: %+v", ns)
	}
	theirs := must(s.Containers().Get(t.Context(), "theirs"))(t)
	if theirs.Labels["l"] != "m" || theirs.Runtime.Name == "" || theirs.Spec == nil || !strings.Contains(string(theirs.Spec.Value), `"true"`) {
		t.Errorf("container: %+v", theirs)
	}
	if ls := must(s.Leases().List(t.Context(), "labels.x==y"))(t); !hasLease(ls, "lease") {
		t.Errorf("leases: %+v", ls)
	}
	if text, err := readBlobText(t, s, d); text != blob || err != nil {
		t.Errorf("blob: %q, %v", text, err)
	}
	sn, _ := s.Snapshotter("native")
	if info := must(sn.Stat(t.Context(), "child"))(t); info.Parent != "base" {
		t.Errorf("snapshot: %+v", info)
	}
	must(db.Collect(t.Context()))(t)

	ours := theirs
	ours.ID, ours.SandboxID, ours.Extensions = "ours", "pod", map[string]object.Any{"e": *theirs.Spec}
	must(s.Containers().Create(t.Context(), ours))(t)
	theirs.Labels = map[string]string{"l": "changed"}
	must(s.Containers().Update(t.Context(), theirs, "labels"))(t)
	ourBlob := putBlob(t, s, "our bytes", map[string]string{"containerd.io/gc.root": "x"})
	must(s.Images().Create(t.Context(), testImage("example.com/ours:1", ourBlob)))(t)
	must(s.Leases().Create(t.Context(), object.Lease{ID: "ourlease"}))(t)
	must(s.Sandboxes().Create(t.Context(), object.Sandbox{ID: "pod", Runtime: object.Runtime{Name: "r"}}))(t)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	p.start(t)
	info := p.ctr(t, "containers", "info", "ours")
	for _, want := range []string{`"ours"`, `"SandboxID": "pod"`, `"l": "m"`} {
		if !strings.Contains(info, want) {
			t.Errorf("containerd does not show %s of our container:\n%s", want, info)
		}
	}
	if info := p.ctr(t, "containers", "info", "theirs"); !strings.Contains(info, `"l": "changed"`) {
		t.Errorf("containerd does not show our change:\n%s", info)
	}
	for _, q := range []struct {
		args string
		want string
	}{
		{"images ls", "example.com/ours:1"},
		{"images ls", ourBlob.String()},
		{"leases ls", "ourlease"},
		{"content ls", ourBlob.String()},
		{"content get " + ourBlob.String(), "our bytes"},
		{"content ls", d.String()},
		{"snapshots --snapshotter native ls", "child"},
		{"namespaces ls", "empty"},
	} {
		if out := p.ctr(t, strings.Fields(q.args)...); !strings.Contains(out, q.want) {
			t.Errorf("containerd's %s does not show %q:\n%s", q.args, q.want, out)
		}
	}
	p.ctr(t, "images", "rm", "--sync", "example.com/ours:1")
	p.ctr(t, "containers", "rm", "ours")
	if slices.Contains(strings.Fields(p.ctr(t, "containers", "ls", "-q")), "ours") {
		t.Error("containerd cannot remove our container")
	}
}
