package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/internal/spec"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"
)

// buildSpec makes the spec of a ctr run command line without a daemon.
func buildSpec(t *testing.T, root string, args ...string) (*specs.Spec, error) {
	t.Helper()
	var out *specs.Spec
	cmd := runCommand()
	cmd.Action = func(_ context.Context, cmd *cli.Command) error {
		req, err := parseCreation(cmd, "default")
		if err != nil {
			return err
		}
		rootfs, err := spec.OpenRootfsDir(root)
		if err != nil {
			return err
		}
		defer rootfs.Close()
		req.flags.Rootfs = rootfs
		req.flags.Image = &ispec.ImageConfig{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: []string{"sh"}}
		out, err = spec.Build(req.flags)
		return err
	}
	prepare(cmd, "run", nil)
	return out, cmd.Run(t.Context(), append([]string{"run"}, args...))
}

func testRootfs(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"passwd", "group"} {
		b, err := os.ReadFile(filepath.Join("testdata/spec", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "etc", name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// normalise takes away what the host adds.
func normalise(s *specs.Spec) {
	s.Linux.MaskedPaths = slices.DeleteFunc(s.Linux.MaskedPaths, func(p string) bool { return strings.HasSuffix(p, "thermal_throttle") })
	for i, e := range s.Process.Env {
		if strings.HasPrefix(e, "HOSTNAME=") {
			s.Process.Env[i] = "HOSTNAME=host"
		}
	}
	for i := range s.Linux.Devices {
		s.Linux.Devices[i].FileMode = nil
	}
	if len(s.Process.Capabilities.Bounding) > 30 { // those of the process that asked
		s.Process.Capabilities.Bounding, s.Process.Capabilities.Effective, s.Process.Capabilities.Permitted = nil, nil, nil
	}
}

// The golden specs were made by containerd's ctr; see testdata/spec/generate.
func TestSpecsEqualContainerds(t *testing.T) {
	root := testRootfs(t)
	cases, err := os.ReadFile("testdata/spec/cases")
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(cases)); lines.Scan(); {
		name, flags, _ := strings.Cut(lines.Text(), " ")
		t.Run(name, func(t *testing.T) {
			flags, command, ok := strings.Cut(flags, "|")
			if !ok {
				command = "true"
			}
			if name == "privileged-nodev" && os.Geteuid() != 0 {
				t.Skip("needs root: a privileged container has the capabilities of its maker")
			}
			args := strings.ReplaceAll(flags, "--env-file ", "--env-file testdata/spec/")
			line := slices.Concat(strings.Fields(args), []string{"image", "golden"}, strings.Fields(command))
			got, err := buildSpec(t, root, line...)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile("testdata/spec/" + name + ".json")
			if err != nil {
				t.Fatal(err)
			}
			var want specs.Spec
			if err := json.Unmarshal(b, &want); err != nil {
				t.Fatal(err)
			}
			normalise(got)
			normalise(&want)
			if want.Linux.Seccomp != nil {
				compareSeccomp(t, got.Linux.Seccomp, want.Linux.Seccomp)
				got.Linux.Seccomp, want.Linux.Seccomp = nil, nil
			}
			g, _ := json.MarshalIndent(got, "", "  ")
			w, _ := json.MarshalIndent(want, "", "  ")
			if !bytes.Equal(g, w) {
				t.Errorf("ctr run %s\ngot  %s\nwant %s", strings.Join(line, " "), g, w)
			}
		})
	}
}

// compareSeccomp wants the same calls to be allowed. The two lists group them
// differently, and write "any family above 40" (after AF_VSOCK) in two ways.
func compareSeccomp(t *testing.T, got, want *specs.LinuxSeccomp) {
	t.Helper()
	rules := func(p *specs.LinuxSeccomp) map[string]bool {
		out := map[string]bool{}
		for _, group := range p.Syscalls {
			for _, name := range group.Names {
				args, _ := json.Marshal(group.Args)
				if name == "socket" && len(group.Args) == 1 && group.Args[0].Value >= 40 {
					args = []byte("above AF_VSOCK")
				}
				if name != "riscv_hwprobe" {
					out[name+" "+string(group.Action)+" "+string(args)] = true
				}
			}
		}
		return out
	}
	g, w := rules(got), rules(want)
	for rule := range w {
		if !g[rule] {
			t.Errorf("seccomp rule %s is missing", rule)
		}
	}
	for rule := range g {
		if !w[rule] {
			t.Errorf("seccomp rule %s is not containerd's", rule)
		}
	}
	if got.DefaultAction != want.DefaultAction || !slices.Equal(got.Architectures, want.Architectures) {
		t.Errorf("seccomp: default %s for %v, want %s for %v", got.DefaultAction, got.Architectures, want.DefaultAction, want.Architectures)
	}
}

func TestBadRunFlags(t *testing.T) {
	root := testRootfs(t)
	for _, tc := range []struct{ flags, want string }{
		{"--mount type=bind,src=/a,nothing i c", "not of the form key=value"},
		{"--mount type=bind,size=3 i c", `no key "size"`},
		{"--cap-add SYS_ADMIN i c", "CAP_"},
		{"--seccomp-profile x i c", "needs --seccomp"},
		{"--seccomp --seccomp-profile testdata/spec/cases i c", "not what the OCI runtime spec describes"},
		{"--cpus 1 --cpu-quota 1 i c", "exclude each other"},
		{"--with-ns network i c", "type:path"},
		{"--with-ns time:/x i c", `no namespace "time"`},
		{"--rlimit-nofile many i c", "soft:hard"},
		{"--uidmap 1:2 --gidmap 1:2:3 i c", "container-id:host-id:length"},
		{"--annotation x i c", "key=value"},
		{"--device /nonexistent i c", "no such file"},
		{"--device vendor.com/gpu=0 i c", "describes the device vendor.com/gpu=0"},
		{"--device /etc/passwd i c", "not a device node"},
		{"--gpus 0 i c", "nvidia-ctk"},
		{"--blockio-class x i c", "needs --blockio-config-file"},
		{"--blockio-config-file /nonexistent i c", "no such file"},
		{"--apparmor-profile a --apparmor-default-profile b i c", "exclude each other"},
		{"--apparmor-default-profile a/b i c", "no name for an AppArmor profile"},
		{"--privileged-without-host-devices i c", "needs --privileged"},
		{"--user nobodyknows i c", "is not in the image's /etc/passwd"},
		{"--user 1:2:3 i c", "more than one colon"},
		{"--user 99999999999 i c", "out of range"},
		{"--config testdata/spec/cases c", "not an OCI runtime spec"},
		{"--config /nonexistent c", "no such file"},
		{"--config testdata/spec/plain.json c sh", "only the container id"},
		{"--runtime io.containerd.x.v1 --runc-binary crun i c", "are for the runtime"},
		{"--runc-systemd-cgroup i c", "needs --cgroup"},
		{"i", "container id"},
		{"", "image ref"},
		{"--priviledged i c", `did you mean "privileged"?`},
	} {
		if _, err := buildSpec(t, root, strings.Fields(tc.flags)...); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("ctr run %s: %v, want an error with %q", tc.flags, err, tc.want)
		}
	}
}

// What follows the container's command is never a flag of ctr.
func TestArgumentsOfTheCommandAreNotFlags(t *testing.T) {
	s, err := buildSpec(t, testRootfs(t), "--rm", "image", "id", "ls", "--env", "-t", "--", "x")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"ls", "--env", "-t", "--", "x"}; !slices.Equal(s.Process.Args, want) {
		t.Errorf("args %q, want %q", s.Process.Args, want)
	}
}
