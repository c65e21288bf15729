package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// guestDir is where the guest finds what the host made for it.
const guestDir = "/run/bench"

// registryAddress is that of the registry in the guest.
const registryAddress = "127.0.0.1:5055"

func imported(i int) string { return fmt.Sprintf("example.com/vm/imported%d:1", i) }
func pulled(i int) string   { return fmt.Sprintf("%s/vm/pulled%d:1", registryAddress, i) }

// contents describes an image of makeImages.
type contents struct {
	Blobs []blob
	Sums  map[string]string
}

type blob struct{ MediaType, Digest string }

func contentsOf(i int) (c contents, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("%s/image-%d/contents.json", guestDir, i))
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(raw, &c)
}

// TestGuest is what runs in the machine: it starts the daemon on what the last boot
// left, checks all that is there, and works until the power is cut. In place of the
// seed of its work it may be told to end: it removes everything then.
func TestGuest(t *testing.T) {
	mode := os.Getenv("BERTH_VM_GUEST")
	if mode == "" {
		t.Skip("it runs in the virtual machine")
	}
	g := &guest{t: t}
	_, err := os.Stat("/data/root")
	again := err == nil
	g.start()
	if again {
		g.reports()
	}
	g.check()
	if mode == "end" {
		g.clear()
		g.stop()
		return
	}
	go http.ListenAndServe(registryAddress, http.HandlerFunc(serve))
	seed, err := strconv.ParseUint(mode, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("vm: working")
	g.work(seed)
}

type guest struct {
	t      *testing.T
	daemon *exec.Cmd
}

// start starts the daemon, which has to answer by itself.
func (g *guest) start() {
	g.t.Helper()
	log, err := os.Create("/run/log")
	if err != nil {
		g.t.Fatal(err)
	}
	defer log.Close()
	g.daemon = exec.Command(guestDir+"/bin/containerd", "--root", "/data/root", "--state", "/run/state", "-a", "/run/c.sock")
	g.daemon.Stdout, g.daemon.Stderr = log, log
	began := time.Now()
	if err := g.daemon.Start(); err != nil {
		g.t.Fatal(err)
	}
	for {
		conn, err := net.Dial("unix", "/run/c.sock")
		if err == nil {
			conn.Close()
			break
		}
		if time.Since(began) > time.Minute {
			g.t.Fatalf("the daemon does not start: %v\n%s", err, g.log())
		}
		time.Sleep(5 * time.Millisecond) // deliberate: a process is waited for
	}
	g.must("version")
	fmt.Printf("vm: the daemon answers after %v\n", time.Since(began).Round(time.Millisecond))
}

func (g *guest) stop() {
	g.daemon.Process.Signal(syscall.SIGTERM)
	if err := g.daemon.Wait(); err != nil {
		g.t.Errorf("the daemon ended with %v\n%s", err, g.log())
	}
}

func (g *guest) log() string {
	raw, _ := os.ReadFile("/run/log")
	return string(raw)
}

// reports waits until the daemon has verified what it wrote before the power went,
// which it has to tell.
func (g *guest) reports() {
	g.t.Helper()
	for began := time.Now(); !strings.Contains(g.log(), "verification is done"); {
		if time.Since(began) > 2*time.Minute {
			g.t.Fatalf("the daemon does not tell of the power cut:\n%s", g.log())
		}
		time.Sleep(10 * time.Millisecond) // deliberate: a file is all that tells
	}
	for line := range strings.Lines(g.log()) {
		if strings.Contains(line, "verif") || strings.Contains(line, "level=warn") || strings.Contains(line, "level=error") {
			fmt.Print("vm: log: ", line)
		}
	}
}

// ctr runs ctr; the error says all of it.
func (g *guest) ctr(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, guestDir+"/bin/ctr", append([]string{"-a", "/run/c.sock"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("ctr %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (g *guest) must(args ...string) string {
	g.t.Helper()
	out, err := g.ctr(args...)
	if err != nil {
		g.t.Fatalf("%v\n%s", err, g.log())
	}
	return out
}

// change makes or removes something and tells the host when it begins and when it is
// acknowledged.
func (g *guest) change(what, kind, name string, commands ...[]string) {
	g.begin(what, kind, name)
	for _, c := range commands {
		status := 0 // ctr tasks rm -f ends with the container's
		_, err := g.ctr(c...)
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			status = exit.ExitCode()
		}
		if err != nil && !(c[0] == "tasks" && status == 137) {
			g.fail(err)
		}
	}
	g.done(what, kind, name)
}

func (g *guest) begin(what, kind, name string) { fmt.Printf("vm: begin %s %s %s\n", what, kind, name) }
func (g *guest) done(what, kind, name string)  { fmt.Printf("vm: done %s %s %s\n", what, kind, name) }

// fail ends the guest, from any goroutine.
func (g *guest) fail(err error) {
	fmt.Printf("vm: failed: %v\n%s\n", err, g.log())
	os.Exit(1)
}

// work changes images and containers, at the same time, until the power goes. What
// there is at first is asked once: a slow machine is for changes.
func (g *guest) work(seed uint64) {
	names := strings.Fields(g.must("images", "ls", "-q"))
	ids := strings.Fields(g.must("containers", "ls", "-q"))
	var mu sync.Mutex // guards names
	any := make(chan struct{}, 1)
	go func() {
		for random := rand.New(rand.NewPCG(seed, 1)); ; {
			i, pull := random.IntN(images), random.IntN(2) == 0
			name := imported(i)
			add := []string{"images", "import", fmt.Sprintf("%s/image-%d/archive.tar", guestDir, i)}
			if pull {
				name = pulled(i)
				add = []string{"images", "pull", "--plain-http", name}
			}
			if at := slices.Index(names, name); at >= 0 {
				mu.Lock()
				names = slices.Delete(names, at, at+1)
				mu.Unlock()
				// --sync: the files are removed, too, while the power may go.
				g.change("remove", "image", name, []string{"images", "rm", "--sync", name})
				continue
			}
			g.change("make", "image", name, add)
			mu.Lock()
			names = append(names, name)
			mu.Unlock()
			select {
			case any <- struct{}{}:
			default:
			}
		}
	}()
	ours := map[string]bool{} // with a task: not of an earlier boot
	for random := rand.New(rand.NewPCG(seed, 2)); ; {
		id := fmt.Sprintf("c%d", random.IntN(images))
		if at := slices.Index(ids, id); at >= 0 {
			ids = slices.Delete(ids, at, at+1)
			commands := [][]string{{"containers", "rm", id}}
			if ours[id] {
				commands = append([][]string{{"tasks", "rm", "-f", id}}, commands...)
			}
			g.change("remove", "container", id, commands...)
			continue
		}
		mu.Lock()
		name := ""
		if len(names) > 0 {
			name = names[random.IntN(len(names))]
		}
		mu.Unlock()
		if name == "" {
			<-any
			continue
		}
		g.begin("make", "container", id)
		// The image may be removed just now.
		if _, err := g.ctr("run", "-d", "--null-io", name, id, "sleep", "1000"); err != nil {
			if !strings.Contains(err.Error(), "not found") {
				g.fail(err)
			}
			continue
		}
		g.done("make", "container", id)
		ids, ours[id] = append(ids, id), true
	}
}

// check looks at everything that is there: it must be whole, whether it was
// acknowledged or not.
func (g *guest) check() {
	g.t.Helper()
	for _, id := range strings.Fields(g.must("containers", "ls", "-q")) {
		fmt.Printf("vm: found container %s\n", id)
		// Its snapshot is there, with the layers below it.
		g.must("snapshots", "mounts", "/run/mnt", id)
	}
	if tasks := g.must("tasks", "ls", "-q"); strings.TrimSpace(tasks) != "" {
		g.t.Errorf("tasks of before the power cut: %s", tasks)
	}
	for _, name := range strings.Fields(g.must("images", "ls", "-q")) {
		fmt.Printf("vm: found image %s\n", name)
		if out := g.must("images", "check", "name=="+name); !strings.Contains(out, "complete") {
			g.t.Errorf("image %s is not complete:\n%s", name, out)
		}
		if err := g.walk(name); err != nil {
			g.t.Errorf("image %s: %v", name, err)
		}
	}
	blobs, _ := filepath.Glob("/data/root/io.containerd.content.v1.content/blobs/sha256/*")
	for _, path := range blobs {
		sum, err := hashFile(path)
		if err == nil && sum != filepath.Base(path) {
			err = errors.New("its bytes hash to " + sum)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			g.t.Errorf("blob %s: %v", path, err)
		}
	}
	if g.t.Failed() {
		g.t.Fatalf("the daemon's log:\n%s", g.log())
	}
	fmt.Printf("vm: %d blobs are whole\n", len(blobs))
}

// walk compares the files of an image with what they were made as.
func (g *guest) walk(name string) error {
	i := -1
	for n := range images {
		if name == imported(n) {
			i = n
		} else if name == pulled(n) {
			i = n + images
		}
	}
	if i < 0 {
		return errors.New("nobody made it")
	}
	c, err := contentsOf(i)
	if err != nil {
		return err
	}
	const dir = "/run/mnt"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if _, err := g.ctr("images", "mount", name, dir); err != nil {
		return err
	}
	defer g.must("images", "unmount", "--rm", dir)
	var wrong []error
	for file, want := range c.Sums {
		got, err := hashFile(filepath.Join(dir, file))
		if err == nil && got != want {
			err = fmt.Errorf("%s: its bytes are others", file)
		}
		wrong = append(wrong, err)
	}
	if got, err := os.Readlink(dir + "/bin/sh"); got != "busybox" {
		wrong = append(wrong, fmt.Errorf("bin/sh is %q, %w", got, err))
	}
	return errors.Join(wrong...)
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

// clear removes everything, and looks for what stays on the disk.
func (g *guest) clear() {
	g.t.Helper()
	if ids := strings.Fields(g.must("containers", "ls", "-q")); len(ids) > 0 {
		g.must(append([]string{"containers", "rm"}, ids...)...)
	}
	if names := strings.Fields(g.must("images", "ls", "-q")); len(names) > 0 {
		g.must(append([]string{"images", "rm"}, names...)...)
	}
	g.must("leases", "create", "--id", "last")
	for _, id := range strings.Fields(g.must("leases", "ls", "-q")) {
		if id != "last" {
			g.must("leases", "rm", id)
		}
	}
	g.must("leases", "rm", "--sync", "last")
	for _, pattern := range []string{
		"io.containerd.content.v1.content/blobs/*/*", "io.containerd.content.v1.content/ingest/*",
		"io.containerd.snapshotter.v1.*/snapshots/*", "io.containerd.runtime.v2.task/*/*", "tmpmounts/*",
	} {
		if left, _ := filepath.Glob("/data/root/" + pattern); len(left) > 0 {
			g.t.Errorf("left behind: %s", strings.Join(left, "\n"))
		}
	}
}

// serve is the part of the distribution protocol by which the images are pulled:
// /v2/vm/pulledI/(manifests|blobs)/NAME.
func serve(w http.ResponseWriter, r *http.Request) {
	var i int
	var kind, name string
	path := strings.ReplaceAll(r.URL.Path, "/", " ")
	if _, err := fmt.Sscanf(path, " v2 vm pulled%d %s %s", &i, &kind, &name); err != nil {
		return
	}
	c, err := contentsOf(i + images)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	for n, b := range c.Blobs {
		last := n == len(c.Blobs)-1 // the manifest
		if b.Digest != name && !(last && name == "1") {
			continue
		}
		data, err := os.ReadFile(fmt.Sprintf("%s/image-%d/%s", guestDir, i+images, strings.TrimPrefix(b.Digest, "sha256:")))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", b.MediaType)
		w.Header().Set("Docker-Content-Digest", b.Digest)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		return
	}
	http.NotFound(w, r)
}
