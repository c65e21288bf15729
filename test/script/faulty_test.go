package script

import (
	"os"
	"path/filepath"
	"testing"

	"berth/internal/registry/registrytest"
	"berth/test/testimage"

	"github.com/rogpeppe/go-internal/testscript"
)

// faults are the ways in which the registry of "faulty" can answer for a layer
// or a manifest.
var faults = map[string]registrytest.Fault{
	"layer-404":     {Path: "/blobs/", Do: registrytest.Status(404)},
	"layer-500":     {Path: "/blobs/", Do: registrytest.Status(500)},
	"layer-cut":     {Path: "/blobs/", Times: 2, Do: registrytest.Cut(100)},
	"layer-reset":   {Path: "/blobs/", Do: registrytest.Cut(0)},
	"layer-corrupt": {Path: "/blobs/", Do: registrytest.Corrupt(1000)},
	"manifest-403":  {Path: "/manifests/", Do: registrytest.Status(403)},
	"manifest-500":  {Path: "/manifests/", Do: registrytest.Status(500)},
	"upload-403":    {Method: "PUT", Do: registrytest.Status(403)},
}

// cmdFaulty starts a registry in the test's own process, or makes it misbehave.
func cmdFaulty(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		ts.Fatalf("usage: faulty start|private|tls|well|FAULT")
	}
	m := of(ts)
	switch args[0] {
	case "start":
		m.faulty = registrytest.New(tb{ts: ts})
	case "private":
		m.faulty = registrytest.New(tb{ts: ts})
		m.faulty.RequireBasic("me", "secret")
	case "tls":
		m.faulty = registrytest.NewTLS(tb{ts: ts})
		ts.Setenv("CA", m.faulty.CAFile(tb{ts: ts}))
	default:
		m.faulty.ClearFaults()
		if args[0] == "well" {
			return
		}
		fault, ok := faults[args[0]]
		if !ok {
			ts.Fatalf("unknown fault %s", args[0])
		}
		if fault.Path == "/blobs/" {
			fault.Path = m.faultyLayer
		}
		m.faulty.AddFault(fault)
		return
	}
	ts.Setenv("FAULTY", m.faulty.Host)
	program, err := os.ReadFile(busybox)
	ts.Check(err)
	img, err := testimage.Busybox("app", program)
	ts.Check(err)
	blobs, err := img.Blobs()
	ts.Check(err)
	last := len(blobs) - 1
	for _, b := range blobs[:last] {
		m.faulty.AddBlob(b.MediaType, b.Data)
	}
	m.faultyLayer = "/blobs/" + blobs[0].Digest.String()
	m.faulty.AddManifest("app", blobs[last].MediaType, blobs[last].Data, "1")
}

// tb lets a script be what a test registry belongs to.
type tb struct {
	testing.TB
	ts *testscript.TestScript
}

func (tb) Helper()             {}
func (t tb) Cleanup(fn func()) { t.ts.Defer(fn) }
func (t tb) Fatal(args ...any) { t.ts.Fatalf("%v", args) }
func (t tb) TempDir() string {
	dir := filepath.Join(t.ts.MkAbs("."), "tb")
	t.ts.Check(os.MkdirAll(dir, 0o700))
	return dir
}
