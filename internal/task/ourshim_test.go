package task

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// built is the shim that ourShim has built, for TestMain to remove.
var built struct {
	sync.Once
	dir string
	err error
}

func buildShim() {
	if built.dir, built.err = os.MkdirTemp("", "berth-shim"); built.err != nil {
		return
	}
	out, err := exec.Command("go", "build", "-o", built.dir+"/containerd-shim-runc-v2", "berth/cmd/containerd-shim-runc-v2").CombinedOutput()
	if err != nil {
		built.err = fmt.Errorf("%w: %s", err, out)
	}
}

// ourShim is Berth's shim, built from the present source or named by BERTH_SHIM.
func ourShim(t testing.TB) string {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if path := os.Getenv("BERTH_SHIM"); path != "" {
		return path
	}
	built.Do(buildShim)
	if built.err != nil {
		t.Skipf("needs Berth's shim: %v", built.err)
	}
	return built.dir + "/containerd-shim-runc-v2"
}

func TestOurShimSameName(t *testing.T) {
	shim := ourShim(t)
	m, seen := newManager(t)
	ctx := within(t, 20*time.Second)
	for range 3 {
		pid, err := m.Create(ctx, "ns", container("life", shim, "exit 7"), CreateOptions{Rootfs: hostRoot()})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := m.Start(ctx, "ns", "life", ""); err != nil || got != pid {
			t.Fatalf("start: PID %d, %v; want %d", got, err, pid)
		}
		if e, err := m.Wait(ctx, "ns", "life", ""); err != nil || e.Status != 7 || e.PID != pid {
			t.Fatalf("exit %+v, %v; want status 7 of PID %d", e, err, pid)
		}
		if e, err := m.Delete(ctx, "ns", "life", ""); err != nil || e.Status != 7 {
			t.Fatalf("delete: %+v, %v; want status 7", e, err)
		}
		if _, err := m.State(ctx, "ns", "life", ""); !errdefs.IsNotFound(err) {
			t.Fatalf("state after delete: %v, want NotFound", err)
		}
	}
	m.quiet(t)
	if n := len(seen()); n != 0 {
		t.Fatalf("the manager published %d events of its own for a clean life: %v", n, seen())
	}
	m.wantEmpty(t)
	m.wantNoShims(t)
}

func BenchmarkLife(b *testing.B) {
	for _, which := range []struct {
		name string
		find func(testing.TB) string
	}{{"ours", ourShim}, {"containerd", peerShim}} {
		b.Run(which.name, func(b *testing.B) {
			shim := which.find(b)
			m, _ := newManager(b)
			ctx := within(b, 5*time.Minute)
			parts := make(map[string]time.Duration)
			lap := func(what string, since *time.Time) {
				now := time.Now()
				parts[what] += now.Sub(*since)
				*since = now
			}
			for n := 0; b.Loop(); n++ {
				id := fmt.Sprint("life", n)
				c := container(id, shim, "exit 0")
				at := time.Now()
				if _, err := m.Create(ctx, "ns", c, CreateOptions{Rootfs: hostRoot()}); err != nil {
					b.Fatal(err)
				}
				lap("create", &at)
				if _, err := m.Start(ctx, "ns", id, ""); err != nil {
					b.Fatal(err)
				}
				lap("start", &at)
				if _, err := m.Wait(ctx, "ns", id, ""); err != nil {
					b.Fatal(err)
				}
				lap("wait", &at)
				if _, err := m.Delete(ctx, "ns", id, ""); err != nil {
					b.Fatal(err)
				}
				lap("delete", &at)
			}
			for what, d := range parts {
				b.ReportMetric(float64(d.Microseconds())/float64(b.N)/1000, what+"-ms")
			}
			m.quiet(b)
		})
	}
}
