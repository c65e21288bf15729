package archtest

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// floors is the table of docs/architecture.md: a package imports lower floors
// only. A sub-package is on its parent's floor unless it is named here.
var floors = map[string]int{
	"daemon":     5,
	"grpcapi":    4,
	"cri":        4,
	"shim":       4,
	"transfer":   3,
	"task":       3,
	"restart":    3,
	"remote":     3,
	"meta":       2,
	"content":    2,
	"snapshot":   2,
	"diff":       2,
	"sandbox":    2,
	"registry":   2,
	"ociruntime": 2,
	"cgroup":     2,
	"events":     2,
	"mount":      2,
	"wire":       1,
	"image":      1,
	"archive":    1,
	"spec":       1,
	"stdio":      1,
	"config":     1,
	"filter":     1,
	"fsx":        1,
	"boltx":      1,
	"par":        1,
	"cleanup":    1,
	"metrics":    1,
	"logrelay":   1,
	"trace":      0,
	"failpoint":  0,
	"object":     0,
	"version":    0,
}

// sameFloor lists the imports within one floor that the table allows.
var sameFloor = map[string][]string{
	"meta":       {"content", "snapshot", "events"},
	"diff":       {"mount", "content"},
	"snapshot":   {"mount"},
	"ociruntime": {"mount", "cgroup"},
	"restart":    {"task"},
	"spec":       {"image"},
	"content":    {"fsx", "filter"},
	// Stores and parsers stand on the smallest tools of their own floor.
	"archive": {"fsx", "par"},
	"image":   {"par"},
	"fsx":     {"cleanup"},
	"config":  {"fsx"},
	"stdio":   {"cleanup", "fsx"},
	"remote":  {"transfer"},
}

// never lists imports that are wrong on any floor: from (a prefix of the path
// within the module) → to, with the reason.
var never = []struct{ from, to, why string }{
	{"internal/grpcapi", "internal/cri", "the two services are neighbours, the engines are what they share"},
	{"internal/cri", "internal/grpcapi", "the two services are neighbours, the engines are what they share"},
	{"internal/cri", "internal/wire", "CRI makes direct calls into the engines"},
	{"internal/cri", "internal/remote", "CRI makes direct calls into the engines"},
	{"internal/shim", "internal/meta", "the shim stays lean"},
	{"internal/shim", "internal/content", "the shim stays lean"},
	{"internal/shim", "internal/registry", "the shim stays lean"},
	{"internal/shim", "internal/wire/records", "it links gRPC; the shim speaks ttrpc only"},
	{"cmd/ctr", "internal/meta", "ctr is a client"},
	{"cmd/ctr", "internal/task", "ctr is a client"},
	{"cmd/ctr", "internal/grpcapi", "ctr is a client"},
	{"cmd/ctr", "internal/daemon", "ctr is a client"},
}

// linkNever lists packages that a program must not even link, however far away
// they are imported.
var linkNever = map[string][]string{
	"cmd/containerd-shim-runc-v2": {
		"google.golang.org/grpc", "go.etcd.io/bbolt", "oras.land/oras-go/v2", "net/http", "github.com/urfave/cli/v3",
		"github.com/opencontainers/go-digest", "github.com/opencontainers/image-spec",
	},
	"cmd/containerd": {"github.com/opencontainers/runc/libcontainer", "github.com/urfave/cli/v2"},
	"cmd/ctr":        {"github.com/opencontainers/runc/libcontainer", "go.etcd.io/bbolt"},
}

// wireAllowed may import the generated API.
var wireAllowed = []string{
	"internal/grpcapi", "internal/shim", "internal/task", "internal/remote", "internal/events", "internal/wire",
	"internal/daemon", "cmd/ctr", "cmd/containerd", "test", "bench",
}

type pkg struct {
	ImportPath string
	Dir        string
	Name       string
	Doc        string
	Imports    []string
	Deps       []string
	GoFiles    []string
	CgoFiles   []string
	Module     *struct{ Path string }
}

const module = "berth/"

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Name,Doc,Imports,Deps,GoFiles,CgoFiles,Module", "./...")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := err.(*exec.ExitError); ok {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p pkg
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 20 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// room is the first element below internal.
func room(importPath string) (string, bool) {
	rest, ok := strings.CutPrefix(importPath, module+"internal/")
	if !ok {
		return "", false
	}
	name, _, _ := strings.Cut(rest, "/")
	return name, true
}

func TestFloors(t *testing.T) {
	for _, p := range packages(t) {
		from, ok := room(p.ImportPath)
		if !ok || from == "archtest" {
			continue
		}
		if _, known := floors[from]; !known {
			t.Errorf("%s is on no floor: give it one in the table of archtest and in docs/architecture.md", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			to, ok := room(imp)
			if !ok || to == from {
				continue
			}
			switch {
			case floors[to] < floors[from]:
			case floors[to] == floors[from] && slices.Contains(sameFloor[from], to):
			default:
				t.Errorf("%s (floor %d) imports %s (floor %d): a package imports lower floors only", p.ImportPath, floors[from], imp, floors[to])
			}
		}
	}
}

func TestNeverImported(t *testing.T) {
	for _, p := range packages(t) {
		within := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			if imp == module+"internal/daemon" && within != "cmd/containerd" {
				t.Errorf("%s imports the daemon's wiring", within)
			}
			for _, n := range never {
				if below(within, n.from) && below(imp, module+n.to) {
					t.Errorf("%s imports %s: %s", within, imp, n.why)
				}
			}
			if strings.HasPrefix(imp, "github.com/containerd/containerd/api") &&
				!slices.ContainsFunc(wireAllowed, func(a string) bool { return below(within, a) }) {
				t.Errorf("%s imports %s: wire types cross the border once, in package wire", within, imp)
			}
		}
	}
}

func below(importPath, prefix string) bool {
	return importPath == prefix || strings.HasPrefix(importPath, prefix+"/")
}

// TestRivalNotLinked proves that nothing of containerd but its published API
// is part of the product.
func TestRivalNotLinked(t *testing.T) {
	for _, p := range packages(t) {
		for _, dep := range append(p.Deps, p.Imports...) {
			rest, ok := strings.CutPrefix(dep, "github.com/containerd/containerd")
			if ok && (rest == "" || rest[0] == '/') && !below(rest, "/api") {
				t.Errorf("%s links %s", p.ImportPath, dep)
			}
		}
	}
}

func TestLinkedPackages(t *testing.T) {
	seen := 0
	for _, p := range packages(t) {
		within := strings.TrimPrefix(p.ImportPath, module)
		banned, ok := linkNever[within]
		if !ok {
			continue
		}
		seen++
		for _, dep := range p.Deps {
			if slices.Contains(banned, dep) {
				t.Errorf("%s links %s (go mod why, or: go list -deps)", within, dep)
			}
		}
	}
	if seen != len(linkNever) {
		t.Errorf("only %d of %d programs exist", seen, len(linkNever))
	}
}

func TestPackageDocs(t *testing.T) {
	for _, p := range packages(t) {
		if p.Name == "main" || len(p.GoFiles)+len(p.CgoFiles) == 0 {
			continue
		}
		if !strings.HasPrefix(p.Doc, "Package "+p.Name+" ") {
			t.Errorf("%s has no package comment that begins with %q", p.ImportPath, "Package "+p.Name)
		}
	}
}

// maxFile and maxPackage are lines of Go without tests; the rooms in large may
// be larger.
const (
	maxFile    = 650
	maxPackage = 3200
)

var large = []string{"internal/meta", "internal/task", "internal/cri", "internal/grpcapi", "cmd/ctr"}

func TestSizes(t *testing.T) {
	lines := map[string]int{}
	eachFile(t, func(name string, src []byte, f *ast.File, fset *token.FileSet) {
		n := strings.Count(string(src), "\n")
		if strings.HasSuffix(path.Dir(name), "test") {
			return // a contract suite
		}
		if n > maxFile {
			t.Errorf("%s has %d lines: would two files be clearer?", name, n)
		}
		lines[path.Dir(name)] += n
	})
	for dir, n := range lines {
		if n > maxPackage && !slices.ContainsFunc(large, func(l string) bool { return below(dir, l) }) {
			t.Errorf("%s has %d lines: a package stays under about 3,000", dir, n)
		}
	}
}

// forbidden calls, with what to use instead.
var forbidden = map[string]string{
	"os.IsNotExist":   "errors.Is(err, fs.ErrNotExist): it sees through wrapped errors",
	"os.IsExist":      "errors.Is(err, fs.ErrExist): it sees through wrapped errors",
	"time.Tick":       "a timer that ends: idle means asleep",
	"log.Fatal":       "return the error: deferred clean-up must run",
	"log.Fatalf":      "return the error: deferred clean-up must run",
	"ioutil.ReadFile": "os.ReadFile",
	"ioutil.ReadAll":  "io.ReadAll with a bound",
}

func TestForbiddenIdioms(t *testing.T) {
	eachFile(t, func(name string, src []byte, f *ast.File, fset *token.FileSet) {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			// A container's init must leave the ordinary start of the program as
			// early as it can: ocinit is the one exception.
			if ok && fn.Recv == nil && fn.Name.Name == "init" && name != "internal/ociruntime/ocinit/ocinit.go" {
				t.Errorf("%s: func init: wiring is one typed file, in order", fset.Position(fn.Pos()))
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := call.X.(*ast.Ident); ok && x.Obj == nil {
				if why, bad := forbidden[x.Name+"."+call.Sel.Name]; bad {
					t.Errorf("%s: %s.%s: use %s", fset.Position(call.Pos()), x.Name, call.Sel.Name, why)
				}
			}
			return true
		})
		if strings.Contains(string(src), "TO"+"DO") || strings.Contains(string(src), "FIX"+"ME") {
			t.Errorf("%s: an unfinished thing is an issue, not a comment", name)
		}
	})
}

// TestNoSleepInTests keeps the clock out of synchronisation. A test that must
// let time pass (a deadline under test) says so with the word "deliberate" in
// a comment on the line.
func TestNoSleepInTests(t *testing.T) {
	walk(t, func(name string) bool { return strings.HasSuffix(name, "_test.go") }, func(name string, src []byte, f *ast.File, fset *token.FileSet) {
		for _, imp := range f.Imports {
			if imp.Path.Value == `"testing/synctest"` {
				return // the clock of a bubble is a fake one
			}
		}
		lines := strings.Split(string(src), "\n")
		ast.Inspect(f, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Sleep" {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" {
					pos := fset.Position(sel.Pos())
					if !strings.Contains(lines[pos.Line-1], "deliberate") {
						t.Errorf("%s: time.Sleep in a test: wait for the event itself", pos)
					}
				}
			}
			return true
		})
	})
}

func eachFile(t *testing.T, fn func(name string, src []byte, f *ast.File, fset *token.FileSet)) {
	t.Helper()
	walk(t, func(name string) bool { return !strings.HasSuffix(name, "_test.go") }, fn)
}

func walk(t *testing.T, want func(string) bool, fn func(name string, src []byte, f *ast.File, fset *token.FileSet)) {
	t.Helper()
	top := root(t)
	files := 0
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(top, p)
		if d.IsDir() {
			if strings.HasPrefix(d.Name(), ".") && rel != "." || rel == "test/compat" || rel == "bin" || d.Name() == "testdata" {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") || !want(rel) {
			return nil
		}
		files++
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, rel, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return fmt.Errorf("parse: %w", err)
		}
		fn(rel, src, f, fset)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Fatal("no files were looked at")
	}
}
