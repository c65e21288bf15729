package config

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestCorpus compares what files of all versions mean, with what is ignored in
// them, against golden files.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %d files: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c, warnings, err := Load(file)
			if err != nil {
				t.Fatal(err)
			}
			data, err := c.TOML()
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, w := range warnings {
				fmt.Fprintf(&b, "# %s\n", w)
			}
			b.Write(data)
			golden := strings.TrimSuffix(file, ".toml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("%s means\n%s\nnot what %s says", file, b.String(), golden)
			}
			again, _, err := Parse("dump", data)
			if err != nil {
				t.Fatalf("its dump cannot be read: %v", err)
			}
			if second, err := again.TOML(); err != nil || string(second) != string(data) {
				t.Errorf("its dump means something else: %v\n%s", err, second)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for name, tc := range map[string]struct{ file, message string }{
		"not TOML":           {"root = \n", "x.toml:1:"},
		"number for string":  {"version = 2\nroot = 5\n", "x.toml:2:1: root"},
		"string for number":  {"version = 2\noom_score = \"low\"\n", "x.toml:2:1: oom_score"},
		"bad duration":       {"[plugins.'io.containerd.gc.v1.scheduler']\nschedule_delay = \"soon\"\n", "x.toml:2:"},
		"table for value":    {"[root]\na = 1\n", "x.toml:1:"},
		"version too new":    {"version = 5\n", "equal to or less than `4`, got `5`"},
		"negative version":   {"version = -1\n", "got `-1`"},
		"short plugin name":  {"version = 2\ndisabled_plugins = [\"cri\"]\n", `"cri" is not a full plugin name`},
		"same directories":   {"version = 2\nroot = \"/a\"\nstate = \"/a/\"\n", "must be different"},
		"oom score":          {"oom_score = 2000\n", "oom_score: 2000"},
		"log format":         {"[debug]\nformat = \"xml\"\n", `"xml" is neither text nor json`},
		"sharing policy":     {"[plugins.'io.containerd.metadata.v1.bolt']\ncontent_sharing_policy = \"open\"\n", `"open" is neither`},
		"no number":          {"[plugins.'io.containerd.gc.v1.scheduler']\npause_threshold = nan\n", "pause_threshold: NaN"},
		"pause threshold":    {"[plugins.'io.containerd.gc.v1.scheduler']\npause_threshold = 0.9\n", "pause_threshold: 0.9"},
		"no differ":          {"[plugins.'io.containerd.service.v1.diff-service']\ndefault = []\n", "there must be a differ"},
		"log level":          {"[debug]\nlevel = \"loud\"\n", "x.toml:2:1: configuration: debug.level"},
		"proxy's type":       {"[proxy_plugins.p]\ntype = \"runtime\"\naddress = \"/x\"\n", "x.toml:2:1: configuration: proxy_plugins.p.type"},
		"half of TLS":        {"version = 4\n[plugins.'io.containerd.server.v1.grpc-tcp']\naddress = \"x:1\"\ntls_cert = \"/c\"\n", "x.toml:4:1:"},
		"one socket for two": {"version = 4\n[plugins.'io.containerd.server.v1.grpc']\naddress = \"/a\"\n[plugins.'io.containerd.server.v1.ttrpc']\naddress = \"/a\"\n", "gRPC socket already"},
		"import of nothing":  {"imports = [\"missing.toml\"]\n", "missing.toml"},
		"import of a link":   {"imports = [\"dangling*.toml\"]\n", "dangling.toml"},
		"bad import pattern": {"imports = [\"[*\"]\n", "import"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.toml")
			if err := os.WriteFile(path, []byte(tc.file), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("missing.toml", filepath.Join(filepath.Dir(path), "dangling.toml")); err != nil {
				t.Fatal(err)
			}
			_, _, err := Load(path)
			if err == nil || !strings.Contains(err.Error(), tc.message) {
				t.Errorf("error %q does not say %q", err, tc.message)
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("error %q is not an invalid argument", err)
			}
			if errors.Is(err, fs.ErrNotExist) {
				t.Errorf("error %q says that there is no configuration: the defaults would be taken for it", err)
			}
		})
	}
}

func TestImports(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"main.toml":     "version = 2\nroot = \"/main\"\nimports = [\"conf.d/*.toml\", \"last.toml\"]\ndisabled_plugins = [\"a.b\"]\n[plugins.'io.containerd.gc.v1.scheduler']\nmutation_threshold = 1\ndeletion_threshold = 2\n",
		"conf.d/1.toml": "version = 3\ndisabled_plugins = [\"a.b\", \"c.d\"]\n[plugins.'io.containerd.gc.v1.scheduler']\nmutation_threshold = 0\n",
		"conf.d/2.toml": "version = 4\nstate = \"/two\"\nimports = [\"../main.toml\"]\n",
		"last.toml":     "state = \"/last\"\n[grpc]\naddress = \"/last.sock\"\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, warnings, err := Load(filepath.Join(dir, "main.toml"))
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if c.Root != "/main" || c.State != "/last" {
		t.Errorf("root %q, state %q", c.Root, c.State)
	}
	if gc := c.Plugins.GC; gc.MutationThreshold != 0 || gc.DeletionThreshold != 2 {
		t.Errorf("scheduler: %+v; the import sets one key and leaves the other", gc)
	}
	if want := []string{"a.b", "c.d"}; !slices.Equal(c.DisabledPlugins, want) {
		t.Errorf("disabled %v, want %v", c.DisabledPlugins, want)
	}
	if c.Plugins.GRPC.Address != "/last.sock" || c.Plugins.TTRPC.Address != "/last.sock.ttrpc" {
		t.Errorf("sockets %q and %q", c.Plugins.GRPC.Address, c.Plugins.TTRPC.Address)
	}
}

func TestSetAddress(t *testing.T) {
	c := Default()
	c.SetAddress("/x")
	if c.Plugins.TTRPC.Address != "/x.ttrpc" {
		t.Errorf("ttrpc socket %q is not beside the other", c.Plugins.TTRPC.Address)
	}
	c.Plugins.TTRPC.Address = "/own"
	c.SetAddress("/y")
	if c.Plugins.GRPC.Address != "/y" || c.Plugins.TTRPC.Address != "/own" {
		t.Errorf("sockets %q and %q", c.Plugins.GRPC.Address, c.Plugins.TTRPC.Address)
	}
}

func TestAbsolute(t *testing.T) {
	t.Chdir("/usr")
	c := Default()
	c.Root, c.State = "r", "../s"
	c.Plugins.GRPC.Address, c.Plugins.TTRPC.Address = "unix:///a.sock", "b.sock"
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	if got := []string{c.Root, c.State, c.Plugins.GRPC.Address, c.Plugins.TTRPC.Address}; !slices.Equal(got, []string{"/usr/r", "/s", "/a.sock", "/usr/b.sock"}) {
		t.Errorf("%q", got)
	}
}

func TestDefaultIsSound(t *testing.T) {
	if err := Default().Check(); err != nil {
		t.Error(err)
	}
}

// FuzzDecode: no file makes the daemon panic, and what is accepted can be
// written and read again.
func FuzzDecode(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.toml")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, _, err := Parse("fuzz", data)
		if err != nil {
			return
		}
		dump, err := c.TOML()
		if err != nil {
			t.Fatalf("cannot be written: %v", err)
		}
		again, _, err := Parse("dump", dump)
		if err != nil {
			t.Fatalf("dump cannot be read: %v\n%s", err, dump)
		}
		if second, err := again.TOML(); err != nil || string(second) != string(dump) {
			t.Fatalf("a dump of the dump differs: %v\n%s\n%s", err, dump, second)
		}
	})
}
