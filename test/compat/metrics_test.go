package compat

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// scrape starts a private daemon of bin, runs a container, and returns the
// families of its metrics with their types, and the sets of label names.
func scrape(t *testing.T, bin string) map[string]bool {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-compat-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	config := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n[grpc]\naddress = %q\n[metrics]\naddress = %q\ngrpc_histogram = true\n[plugins.'io.containerd.internal.v1.opt']\npath = %q\n",
		dir+"/root", dir+"/state", dir+"/c.sock", address, dir+"/opt")
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	path := "PATH=" + bin + ":" + peerBin + ":/usr/sbin:/usr/bin:/sbin:/bin"
	cmd := exec.Command(filepath.Join(bin, "containerd"), "-c", dir+"/config.toml")
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = append(os.Environ(), path), &log, &log, 5*time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", log.String())
		}
	}()
	ctr := func(args ...string) {
		t.Helper()
		c := exec.Command(filepath.Join(bin, "ctr"), append([]string{"-a", dir + "/c.sock", "-n", "compat-metrics-" + filepath.Base(dir)}, args...)...)
		c.Env = append(os.Environ(), path)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("ctr %v: %v\n%s", args, err, out)
		}
	}
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) { // for the other daemon, which says nothing when it is ready
		if conn, err := net.Dial("unix", dir+"/c.sock"); err == nil {
			conn.Close()
			break
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("the daemon does not listen:\n%s", log.String())
		}
	}
	ctr("images", "import", archiveOf(t).Name())
	ctr("run", "-d", imageName, "m", "sleep", "1000")
	resp, err := http.Get("http://" + address + "/v1/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	ctr("tasks", "delete", "--force", "m")
	ctr("containers", "delete", "m")
	if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain; version=0.0.4") {
		t.Errorf("content type %q", ct)
	}
	sample, label := regexp.MustCompile(`^([a-zA-Z_0-9]+)(\{.*\})? `), regexp.MustCompile(`([a-z_]+)="`)
	out := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			out[strings.TrimSpace(rest)] = true
		} else if m := sample.FindStringSubmatch(line); m != nil && line[0] != '#' {
			var names []string
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				names = append(names, l[1])
			}
			out[m[1]+"{"+strings.Join(names, ",")+"}"] = true
		}
	}
	return out
}

// TestMetrics: the families of a daemon of theirs are those of ours, with the
// same types and labels, but for those of parts that ours does not have.
func TestMetrics(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	theirs, ours := scrape(t, peerBin), scrape(t, oursBin)
	missing := regexp.MustCompile(`^containerd_(cri|nri|erofs)_`)
	for _, m := range slices.Sorted(maps.Keys(theirs)) {
		if !ours[m] && !missing.MatchString(m) {
			t.Errorf("only theirs: %s", m)
		}
	}
	for _, m := range slices.Sorted(maps.Keys(ours)) {
		if !theirs[m] {
			t.Errorf("only ours: %s", m)
		}
	}
}
