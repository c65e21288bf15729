package diff

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"berth/internal/object"

	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func shell(id, accepts, returns, script string, env ...string) Processor {
	return Processor{ID: id, Accepts: []string{accepts}, Returns: returns, Path: "/bin/sh", Args: []string{"-c", script}, Env: env}
}

func TestProcessors(t *testing.T) {
	const secret, twice = ispec.MediaTypeImageLayer + "+secret", ispec.MediaTypeImageLayer + "+twice"
	upper := `tr a-z A-Z`
	big := bytes.Repeat([]byte("abcdefgh"), 1<<17)
	for name, c := range map[string]struct {
		processors []Processor
		mediaType  string
		in         io.Reader
		payloads   map[string]object.Any
		want       string // of the output
		err        string // in the error
	}{
		"one":              {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, upper)}, want: "LAYER"},
		"first wins":       {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, upper), shell("q", secret, ispec.MediaTypeImageLayer, "false")}, want: "LAYER"},
		"chain":            {mediaType: twice, processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, upper), shell("q", twice, secret, "cat; printf -- -more")}, want: "LAYER-MORE"},
		"to gzip":          {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayerGzip, "gzip -c")}, want: "layer"},
		"before built in":  {mediaType: ispec.MediaTypeImageLayerGzip, processors: []Processor{shell("p", ispec.MediaTypeImageLayerGzip, ispec.MediaTypeImageLayer, upper)}, want: "LAYER"},
		"environment":      {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, `cat >/dev/null; printf "$STREAM_PROCESSOR_MEDIATYPE $X"`, "X=y")}, want: secret + " y"},
		"payload":          {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, "cat >/dev/null; cat <&3")}, payloads: map[string]object.Any{"p": {TypeURL: "t", Value: []byte("v")}}, want: "\n\x01t\x12\x01v"},
		"payload unread":   {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, "cat")}, payloads: map[string]object.Any{"p": {Value: big}}, want: "layer"},
		"other's payload":  {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, "cat; test ! -e /proc/self/fd/3")}, payloads: map[string]object.Any{"q": {Value: big}}, want: "layer"},
		"large":            {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, "cat")}, in: bytes.NewReader(big), want: string(big)},
		"input unread":     {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, "printf ok")}, in: bytes.NewReader(big), want: "ok"},
		"fails":            {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, "cat; echo wrong key >&2; exit 3")}, err: "stream processor \"p\": exit status 3: wrong key"},
		"first of a chain": {mediaType: twice, processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, "cat; exit 4"), shell("q", twice, secret, "echo no >&2; exit 5")}, err: "\"q\": exit status 5: no"},
		"fails late":       {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayerGzip, "gzip -c; exit 6")}, err: "exit status 6"},
		"killed":           {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, "kill -9 $$")}, err: "killed"},
		"long complaint":   {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, "yes | head -c 1000000 >&2; echo the end >&2; exit 1")}, err: "the end"},
		"no program":       {processors: []Processor{{ID: "p", Accepts: []string{secret}, Returns: ispec.MediaTypeImageLayer, Path: "/none"}}, err: "stream processor \"p\""},
		"garbage":          {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayerGzip, "echo hint >&2; head -c 2 /dev/zero; printf '\\037\\213'; sleep 0")}, want: "\x00\x00\x1f\x8b"},
		"bad source":       {processors: []Processor{shell("p", secret, ispec.MediaTypeImageLayer, "test $(wc -c) = 7")}, in: iotest.ErrReader(errors.New("connection cut")), err: "connection cut"},
		"a circle":         {processors: []Processor{shell("p", secret, secret, "cat")}, err: "do not come to an end"},
		"no processor":     {err: "no stream processor"},
	} {
		t.Run(name, func(t *testing.T) {
			w := NewWalking(nil, c.processors...)
			if c.mediaType == "" {
				c.mediaType = secret
			}
			if c.in == nil {
				c.in = strings.NewReader("layer")
			}
			var got []byte
			layer, err := w.Open(t.Context(), c.mediaType, c.in, c.payloads)
			if err == nil {
				got, err = io.ReadAll(layer)
				if cerr := layer.Close(); cerr != nil {
					t.Error(cerr)
				}
			}
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want one with %q", err, c.err)
				}
			} else if err != nil || string(got) != c.want {
				t.Errorf("%.60q %v, want %.60q", got, err, c.want)
			}
		})
	}
	if _, err := NewWalking(nil).Open(t.Context(), secret, nil, nil); !errdefs.IsNotImplemented(err) {
		t.Error(err)
	}
}

func TestProcessorStalls(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	p := shell("p", "x", ispec.MediaTypeImageLayer, "sleep 1000 & echo $! >"+pid+"; echo stuck >&2; wait")
	p.Stall = 300 * time.Millisecond
	layer, err := NewWalking(nil, p).Open(t.Context(), "x", strings.NewReader("layer"), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(layer)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "stuck") {
		t.Errorf("error %v", err)
	}
	if err := layer.Close(); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(n, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if ended, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); err != nil || ended == 0 {
		t.Errorf("what it started lives on: %v", err)
	}
}

func TestProcessorEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	layer, err := NewWalking(nil, shell("p", "x", ispec.MediaTypeImageLayer, "echo; sleep 1000")).Open(ctx, "x", strings.NewReader(""), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(layer, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(layer); err == nil {
		t.Error("no error")
	}
	if err := layer.Close(); err != nil {
		t.Error(err)
	}
}

// Apply hands the payloads over and takes the diff ID of what comes out.
func TestApplyWithProcessor(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	w := NewWalking(nil, shell("p", "x", ispec.MediaTypeImageLayerGzip, "cat >/dev/null; tar -cz -C "+dir+" ."))
	un, err := w.unpack(t.Context(), "x", strings.NewReader("whatever"), []object.Mount{{Type: "bind", Source: target, Options: []string{"rw", "rbind"}}}, false, nil)
	if err != nil || un.Size < 1024 || un.DiffID.Validate() != nil {
		t.Fatalf("%+v %v", un, err)
	}
	if got, err := os.ReadFile(filepath.Join(target, "file")); err != nil || string(got) != "content" {
		t.Errorf("%q %v", got, err)
	}
}

func TestGarbageOfProcessor(t *testing.T) {
	w := NewWalking(nil, shell("p", "x", ispec.MediaTypeImageLayer, "cat >/dev/null; echo my mistake >&2; yes garbage | head -c 100000"))
	_, err := w.Unpack(t.Context(), "x", strings.NewReader(""), []object.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rw"}}}, false)
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "my mistake") {
		t.Errorf("error %v", err)
	}
}

type fixed struct {
	Differ
	digest string
	err    error
}

func (f fixed) Apply(context.Context, ispec.Descriptor, []object.Mount, ApplyOptions) (ispec.Descriptor, error) {
	return ispec.Descriptor{MediaType: f.digest}, f.err
}

func (f fixed) Compare(context.Context, []object.Mount, []object.Mount, CompareOptions) (ispec.Descriptor, error) {
	return ispec.Descriptor{MediaType: f.digest}, f.err
}

func TestChain(t *testing.T) {
	not, bad, ok := fixed{err: errdefs.ErrNotImplemented}, fixed{err: errdefs.ErrInvalidArgument}, fixed{digest: "ok"}
	for name, c := range map[string]struct {
		chain Chain
		want  string
		err   error
	}{
		"none":  {nil, "", errdefs.ErrNotImplemented},
		"all":   {Chain{not, not}, "", errdefs.ErrNotImplemented},
		"next":  {Chain{not, ok, bad}, "ok", nil},
		"fails": {Chain{not, bad, ok}, "", errdefs.ErrInvalidArgument},
	} {
		a, aerr := c.chain.Apply(t.Context(), ispec.Descriptor{}, nil, ApplyOptions{})
		b, berr := c.chain.Compare(t.Context(), nil, nil, CompareOptions{})
		if !errors.Is(aerr, c.err) || !errors.Is(berr, c.err) || a.MediaType != c.want || b.MediaType != c.want {
			t.Errorf("%s: %v %v, %v %v", name, a, aerr, b, berr)
		}
	}
}
