package script

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/internal/registry/registrytest"
	"berth/test/testimage"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"
)

// cmdFake runs the registry that can misbehave, in the test's own process.
func cmdFake(ts *testscript.TestScript, neg bool, args []string) {
	m := of(ts)
	switch {
	case neg:
		ts.Fatalf("fake cannot be negated")
	case len(args) == 0:
		m.fake = registrytest.New(tb{ts: ts})
	case len(args) == 1 && args[0] == "private":
		m.fake = registrytest.New(tb{ts: ts})
		m.fake.RequireBasic("me", "secret")
	case len(args) == 1 && args[0] == "tls":
		m.fake = registrytest.NewTLS(tb{ts: ts})
		ts.Setenv("CA", m.fake.CAFile(tb{ts: ts}))
	case m.fake == nil:
		ts.Fatalf("fake has not been started")
	case len(args) == 1 && args[0] == "well":
		m.fake.ClearFaults()
	case len(args) >= 3 && len(args) <= 5:
		m.fake.AddFault(faultOf(ts, m.fake, args))
	default:
		ts.Fatalf("usage: fake [private|tls|well|METHOD PATH FAULT [N [TIMES]]]")
	}
	ts.Setenv("FAKE", m.fake.Host)
}

// faultOf reads METHOD PATH FAULT [N [TIMES]].
func faultOf(ts *testscript.TestScript, fake *registrytest.Registry, args []string) registrytest.Fault {
	f := registrytest.Fault{Method: args[0], Path: args[1]}
	var numbers [2]int // N, TIMES
	for i, arg := range args[3:] {
		var err error
		numbers[i], err = strconv.Atoi(arg)
		ts.Check(err)
	}
	n := numbers[0]
	f.Times = numbers[1]
	switch args[2] {
	case "status":
		f.Do = registrytest.Status(n)
	case "hang":
		f.Do = fake.HangAfter(n)
	case "silent":
		f.Do = fake.Hang()
	case "cut":
		f.Do = registrytest.Cut(n)
	case "short":
		f.Do = registrytest.Short(n)
	case "drip":
		f.Do = registrytest.Drip(n, 50*time.Millisecond)
	case "corrupt":
		f.Do = registrytest.Corrupt(n)
	default:
		ts.Fatalf("unknown fault %s", args[2])
	}
	return f
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

// dockerTypes are the media types of Docker's schema 2 for those of OCI.
var dockerTypes = map[string]string{
	ispec.MediaTypeImageManifest:  "application/vnd.docker.distribution.manifest.v2+json",
	ispec.MediaTypeImageIndex:     "application/vnd.docker.distribution.manifest.list.v2+json",
	ispec.MediaTypeImageConfig:    "application/vnd.docker.container.image.v1+json",
	ispec.MediaTypeImageLayerGzip: "application/vnd.docker.image.rootfs.diff.tar.gzip",
	ispec.MediaTypeImageLayer:     "application/vnd.docker.image.rootfs.diff.tar",
	ispec.MediaTypeImageLayerZstd: "application/vnd.docker.image.rootfs.diff.tar.zstd",
}

// cmdMkimage builds an image of busybox and further layers.
func cmdMkimage(ts *testscript.TestScript, neg bool, args []string) {
	fs := flag.NewFlagSet("mkimage", flag.ContinueOnError)
	name := fs.String("name", ts.Getenv("IMAGE"), "its `name` in an archive")
	out := fs.String("o", "", "write an archive to `file`")
	serve := fs.String("serve", "", "put it into the fake registry as `repository:tag`")
	compression := fs.String("c", "gzip", "of layers: gzip, zstd or none")
	kind := fs.String("type", "oci", "oci, docker (schema 2) or save (an archive as docker save writes it)")
	platforms := fs.String("platforms", "", "make an index of these, each with a file /platform")
	wrong := fs.Bool("wrong-diffid", false, "the last layer's diff ID is wrong")
	bare := fs.Bool("bare", false, "without busybox")
	ts.Check(fs.Parse(args))

	program, err := os.ReadFile(busybox)
	ts.Check(err)
	img, err := testimage.Busybox(*name, program)
	ts.Check(err)
	if *bare {
		img.Layers = nil
	}
	for _, f := range fs.Args() {
		layer, err := namedLayer(f)
		ts.Check(err)
		if layer == nil {
			layer, err = os.ReadFile(ts.MkAbs(f))
			ts.Check(err)
		}
		img.Layers = append(img.Layers, layer)
	}
	img.Compression = map[string]testimage.Compression{"gzip": testimage.Gzip, "zstd": testimage.Zstd, "none": testimage.None}[*compression]

	if *out != "" {
		var b bytes.Buffer
		if *kind == "save" {
			ts.Check(img.WriteDocker(&b))
		} else {
			ts.Check(testimage.WriteOCI(&b, img))
		}
		ts.Check(os.WriteFile(ts.MkAbs(*out), b.Bytes(), 0o600))
	}
	if *serve == "" {
		return
	}
	fake := of(ts).fake
	repository, tag, _ := strings.Cut(*serve, ":")
	if *platforms == "" {
		_, err := put(fake, repository, img, *kind == "docker", *wrong, tag)
		ts.Check(err)
		blobs, err := img.Blobs()
		ts.Check(err)
		ts.Setenv("LAYER", "/blobs/"+blobs[0].Digest.String())
		return
	}
	index := ispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageIndex}
	for p := range strings.SplitSeq(*platforms, ",") {
		one := img
		f := strings.Split(p, "/")
		one.Platform = ispec.Platform{OS: f[0], Architecture: f[1]}
		if len(f) > 2 {
			one.Platform.Variant = f[2]
		}
		layer, err := testimage.Layer(testimage.File("platform", 0o644, []byte(p+"\n")))
		ts.Check(err)
		one.Layers = append(append([][]byte(nil), img.Layers...), layer)
		d, err := put(fake, repository, one, *kind == "docker", *wrong)
		ts.Check(err)
		d.Platform = &one.Platform
		index.Manifests = append(index.Manifests, d)
	}
	mediaType := index.MediaType
	if *kind == "docker" {
		mediaType = dockerTypes[mediaType]
		index.MediaType = mediaType
	}
	fake.AddManifest(repository, mediaType, index, tag)
}

// put stores one image in the registry.
func put(fake *registrytest.Registry, repository string, img testimage.Image, docker, wrong bool, tags ...string) (ispec.Descriptor, error) {
	blobs, err := img.Blobs()
	if err != nil {
		return ispec.Descriptor{}, err
	}
	n := len(blobs)
	config, manifest := blobs[n-2], blobs[n-1]
	if wrong {
		var c ispec.Image
		if err := json.Unmarshal(config.Data, &c); err != nil {
			return ispec.Descriptor{}, err
		}
		c.RootFS.DiffIDs[len(c.RootFS.DiffIDs)-1] = digest.FromString("something else")
		if config.Data, err = json.Marshal(c); err != nil {
			return ispec.Descriptor{}, err
		}
	}
	var m ispec.Manifest
	if err := json.Unmarshal(manifest.Data, &m); err != nil {
		return ispec.Descriptor{}, err
	}
	m.Config = fake.AddBlob(config.MediaType, config.Data)
	for _, b := range blobs[:n-2] {
		fake.AddBlob(b.MediaType, b.Data)
	}
	if docker {
		m.MediaType = dockerTypes[m.MediaType]
		m.Config.MediaType = dockerTypes[m.Config.MediaType]
		for i := range m.Layers {
			m.Layers[i].MediaType = dockerTypes[m.Layers[i].MediaType]
		}
	}
	return fake.AddManifest(repository, m.MediaType, m, tags...), nil
}

// namedLayer returns a layer that no tar program makes; nil for other names.
func namedLayer(name string) ([]byte, error) {
	file, dir, link := testimage.File, testimage.Dir, testimage.Symlink
	special := func(typ byte, name string, h tar.Header) testimage.Entry {
		h.Typeflag, h.Name, h.ModTime = typ, name, testimage.Epoch
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		return testimage.Entry{Header: h}
	}
	with := func(e testimage.Entry, f func(h *tar.Header)) testimage.Entry { f(&e.Header); return e }
	long := strings.Repeat("directory/", 30) + strings.Repeat("n", 200)
	switch name {
	case ":features":
		return testimage.Layer(
			dir("f", 0o755), file("f/deleted", 0o644, []byte("x")), dir("f/opaque", 0o755), file("f/opaque/old", 0o644, []byte("x")),
			dir("f/gone", 0o755), file("f/gone/a", 0o644, []byte("x")),
			dir("f/todir", 0o755), file("f/todir/below", 0o644, nil), file("f/tofile", 0o644, []byte("was a file")),
			with(file("f/suid", 0o4755, []byte("s")), func(h *tar.Header) { h.Uid, h.Gid = 1234, 2345 }),
			file("f/sgid", 0o2755, nil), dir("f/sticky", 0o1777),
			file("f/first", 0o640, []byte("linked")), special(tar.TypeLink, "f/second", tar.Header{Linkname: "f/first", Mode: 0o640}),
			with(file("f/xattr", 0o644, nil), func(h *tar.Header) {
				h.PAXRecords = map[string]string{"SCHILY.xattr.user.colour": "blue",
					"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
			}),
			special(tar.TypeChar, "f/null", tar.Header{Devmajor: 1, Devminor: 3, Mode: 0o666}),
			special(tar.TypeBlock, "f/block", tar.Header{Devmajor: 7, Devminor: 0, Mode: 0o660, Gid: 6}),
			special(tar.TypeFifo, "f/fifo", tar.Header{Mode: 0o600}),
			with(file("f/future", 0o600, nil), func(h *tar.Header) { h.Uid, h.Gid = 1<<31+5, 1<<31+6; h.Format = tar.FormatGNU }),
			link("f/dangling", "/nowhere/at all"),
			file("f/"+long, 0o644, []byte("long")), link("f/longlink", "/"+long),
			file("f/name with blank\tand tab\"", 0o644, nil),
		)
	case ":changes":
		return testimage.Layer(
			file("f/.wh.deleted", 0, nil), file("f/.wh.gone", 0, nil),
			dir("f/opaque", 0o755), file("f/opaque/.wh..wh..opq", 0, nil), file("f/opaque/new", 0o644, []byte("y")),
			file("f/todir", 0o644, []byte("a file now")), dir("f/tofile", 0o755), file("f/tofile/inside", 0o644, nil),
			dir("f/sticky", 0o1755),
		)
	case ":dotdot":
		return testimage.Layer(file("../../../../../../../../../../escaped", 0o644, []byte("out")))
	case ":absolute":
		return testimage.Layer(file("/absolute", 0o644, []byte("inside")))
	case ":symlink-escape":
		return testimage.Layer(link("out", "../../../../../../../../../../tmp"), file("out/berth-escaped", 0o644, []byte("out")))
	case ":link-escape":
		return testimage.Layer(special(tar.TypeLink, "stolen", tar.Header{Linkname: "../../../../../../../../../../etc/hostname"}))
	case ":whiteout-escape":
		return testimage.Layer(file("a/.wh...", 0, nil))
	case ":devices":
		var e []testimage.Entry
		for i := range 70000 {
			e = append(e, special(tar.TypeChar, fmt.Sprintf("d%d", i), tar.Header{Devmajor: 1, Devminor: 3}))
		}
		return testimage.Layer(e...)
	case ":truncated":
		l, err := testimage.Layer(file("whole", 0o644, make([]byte, 5000)), file("half", 0o644, make([]byte, 5000)))
		if err != nil {
			return nil, err
		}
		return l[:512+5120+512+1000], nil
	case ":big":
		// Random bytes do not compress.
		b := make([]byte, 12<<20)
		x := uint32(1)
		for i := range b {
			x ^= x << 13
			x ^= x >> 17
			x ^= x << 5
			b[i] = byte(x)
		}
		return testimage.Layer(file("big", 0o644, b))
	}
	if strings.HasPrefix(name, ":") {
		return nil, fmt.Errorf("no layer is called %s", name)
	}
	return nil, nil
}
