package vm

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"berth/test/testimage"
)

// bench is what the guest needs, in a directory that is shared with it at guestDir.
type bench struct {
	t    *testing.T
	tool string
	dir  string
}

func newBench(t *testing.T) *bench {
	tool := os.Getenv("BERTH_VM")
	if tool == "" {
		t.Skip("BERTH_VM names no program that runs a virtual machine")
	}
	if os.Geteuid() != 0 {
		t.Skip("virtual machines need root")
	}
	b := &bench{t: t, tool: tool, dir: t.TempDir()}
	if bin := os.Getenv("BERTH_BIN"); bin != "" {
		b.host("cp", "-r", bin, b.dir+"/bin")
	} else {
		b.host("../../scripts/build", b.dir+"/bin")
	}
	b.host("../../scripts/busybox", "../../bin/test") // where the scripts look for it
	b.host("cp", "../../bin/test/busybox", b.dir)
	return b
}

// host runs a program here, which has to succeed.
func (b *bench) host(name string, args ...string) {
	b.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		b.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// guest runs a command in the machine and returns what it printed.
func (b *bench) guest(mode string, options []string, command ...string) (out string, err error) {
	b.t.Helper()
	args := append([]string{mode, "--share", b.dir + ":" + guestDir + ":ro"}, options...)
	args = append(append(args, "--"), command...)
	var buf bytes.Buffer
	cmd := exec.CommandContext(b.t.Context(), b.tool, args...)
	cmd.Stdout, cmd.Stderr = &buf, &buf
	err = cmd.Run()
	return buf.String(), err
}

// TestScripts runs the scripts about the life of containers, their limits, statistics,
// pauses, execs, signals and the lack of memory under version 2 of control groups.
func TestScripts(t *testing.T) {
	b := newBench(t)
	b.host("go", "test", "-c", "-o", b.dir+"/script.test", "berth/test/script")
	scripts := "run|run_options|detached|lifetimes|terminal|stdin|orphans|restart"
	if s := os.Getenv("BERTH_VM_SCRIPTS"); s != "" {
		scripts = s
	}
	source, err := filepath.Abs("../script")
	if err != nil {
		t.Fatal(err)
	}
	// Not in the guest's /tmp, which has neither devices nor user.* attributes.
	disk := filepath.Join(t.TempDir(), "disk")
	b.host(b.tool, "disk", disk, "4G")
	out, err := b.guest("run", []string{"--mem", "3000", "--timeout", "1200", "--disk", disk}, "sh", "-c",
		`cd "$1" && exec env TMPDIR=/data BERTH_BIN=`+guestDir+`/bin `+guestDir+`/script.test -test.v -test.timeout 20m -test.run "$2"`,
		"sh", source, "^(TestScripts|TestNothingLeft)$/^("+scripts+")$")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ran := 0
	for _, name := range strings.Split(scripts, "|") {
		if strings.Contains(out, "--- PASS: TestScripts/"+name+" ") {
			ran++
		}
	}
	t.Logf("%d scripts passed", ran)
	if ran == 0 || strings.Contains(out, "--- SKIP") {
		t.Errorf("some did not run:\n%s", out)
	}
}

// images is how many there are to import, and as many to pull.
const images = 6

// makeImages writes the images that the guest imports and serves.
func (b *bench) makeImages() {
	busybox, err := os.ReadFile(b.dir + "/busybox")
	if err != nil {
		b.t.Fatal(err)
	}
	for i := range 2 * images {
		dir := fmt.Sprintf("%s/image-%d", b.dir, i)
		if err := errors.Join(os.Mkdir(dir, 0o755), b.makeImage(dir, i, busybox)); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) makeImage(dir string, i int, busybox []byte) error {
	img, err := testimage.Busybox(imported(i), busybox)
	if err != nil {
		return err
	}
	sums := map[string]string{}
	random := rand.NewChaCha8([32]byte{byte(i)})
	for layer := range 3 {
		// Some large files and many small: both kinds of writing.
		entries := []testimage.Entry{testimage.Dir(fmt.Sprintf("l%d", layer), 0o755)}
		for file := range 30 {
			data := make([]byte, 2000)
			if file == 0 {
				data = make([]byte, 400<<10)
			}
			random.Read(data)
			name := fmt.Sprintf("l%d/f%d", layer, file)
			sums[name] = fmt.Sprintf("%x", sha256.Sum256(data))
			entries = append(entries, testimage.File(name, 0o644, data))
		}
		l, err := testimage.Layer(entries...)
		if err != nil {
			return err
		}
		img.Layers = append(img.Layers, l)
	}
	var archive bytes.Buffer
	if err := testimage.WriteOCI(&archive, img); err != nil {
		return err
	}
	blobs, err := img.Blobs()
	if err != nil {
		return err
	}
	served := make([]blob, len(blobs))
	for n, bl := range blobs {
		served[n] = blob{bl.MediaType, bl.Digest.String()}
		if err := os.WriteFile(filepath.Join(dir, bl.Digest.Encoded()), bl.Data, 0o644); err != nil {
			return err
		}
	}
	index, err := json.Marshal(contents{served, sums})
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(dir+"/archive.tar", archive.Bytes(), 0o644), os.WriteFile(dir+"/contents.json", index, 0o644))
}

// ledger is what the guest was told, by kind and name, over all cuts.
type ledger map[string]*entry

type entry struct {
	there   bool // the last change that was acknowledged made it
	pending bool // a change was begun and not acknowledged
}

// read takes the lines that the guest printed before the power went.
func (l ledger) read(out string) (acknowledged int) {
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 5 || f[0] != "vm:" {
			continue // vm: begin|done make|remove image|container NAME
		}
		key := f[3] + " " + f[4]
		if l[key] == nil {
			l[key] = &entry{}
		}
		switch f[1] {
		case "begin":
			l[key].pending = true
		case "done":
			*l[key] = entry{there: f[2] == "make"}
			acknowledged++
		}
	}
	return acknowledged
}

// compare tells what is missing, or is there against what was acknowledged.
func (l ledger) compare(out string) (wrong []string) {
	there := map[string]bool{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == "vm:" && f[1] == "found" {
			there[f[2]+" "+f[3]] = true
		}
	}
	for key, e := range l {
		if !e.pending && e.there != there[key] {
			wrong = append(wrong, fmt.Sprintf("%s: acknowledged as there: %v, found: %v", key, e.there, there[key]))
		}
		*e = entry{there: there[key]} // from here on
	}
	slices.Sort(wrong)
	return wrong
}

// TestPowerCuts cuts the power at random moments while images are imported and
// pulled, containers are run, and all are removed, and looks after each cut: the
// daemon starts by itself, what was acknowledged is there, what is there is whole.
func TestPowerCuts(t *testing.T) {
	b := newBench(t)
	b.makeImages()
	b.host("go", "test", "-c", "-o", b.dir+"/vm.test", ".")
	disk := filepath.Join(t.TempDir(), "disk")
	b.host(b.tool, "disk", disk, "2G")
	cuts, seed := 5, rand.Uint64()
	if s := os.Getenv("BERTH_VM_CUTS"); s != "" {
		var err error
		if cuts, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	if s := os.Getenv("BERTH_VM_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("BERTH_VM_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	l, total := ledger{}, 0
	for n := range cuts {
		unflushed := []string{"drop", fmt.Sprintf("random:%d", random.Uint32()), "keep"}[random.IntN(3)]
		after := 500 + random.IntN(14500) // ms
		out, err := b.guest("cut", []string{
			"--disk", disk, "--timeout", "600", "--env", "BERTH_VM_GUEST=" + fmt.Sprint(random.Uint32()),
			"--on-line", "^vm: working", "--after", fmt.Sprintf("%d.%03d", after/1000, after%1000), "--unflushed", unflushed,
		}, guestDir+"/vm.test", "-test.v", "-test.timeout", "15m", "-test.run", "^TestGuest$")
		if err != nil {
			t.Fatalf("cut %d: %v\n%s", n, err, out)
		}
		before, after2, _ := strings.Cut(out, "vm: working")
		if wrong := l.compare(before); n > 0 && len(wrong) > 0 {
			t.Fatalf("after cut %d:\n%s\n%s", n, strings.Join(wrong, "\n"), out)
		}
		acknowledged := l.read(after2)
		total += acknowledged
		t.Logf("cut %d after %d ms of work, unflushed writes: %s, %d changes acknowledged", n+1, after, unflushed, acknowledged)
	}
	out, err := b.guest("run", []string{"--disk", disk, "--timeout", "600", "--env", "BERTH_VM_GUEST=end"},
		guestDir+"/vm.test", "-test.v", "-test.timeout", "15m", "-test.run", "^TestGuest$")
	if err != nil {
		t.Fatalf("at the end: %v\n%s", err, out)
	}
	if wrong := l.compare(out); len(wrong) > 0 {
		t.Fatalf("at the end:\n%s\n%s", strings.Join(wrong, "\n"), out)
	}
	t.Logf("%d cuts, %d changes acknowledged", cuts, total)
}
