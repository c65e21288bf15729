package doctor

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// healthy are the files of a host where nothing is wrong. A value that begins with
// -> is a link.
func healthy() map[string]string {
	return map[string]string{
		"proc/sys/kernel/osrelease": "6.1.0-13-amd64\n",
		"proc/filesystems":          "nodev\tproc\nnodev\tsysfs\nnodev\ttmpfs\nnodev\tdevpts\nnodev\tmqueue\nnodev\toverlay\n\terofs\n\tbtrfs\n",
		"proc/self/ns/mnt":          "", "proc/self/ns/pid": "", "proc/self/ns/net": "", "proc/self/ns/ipc": "", "proc/self/ns/uts": "",
		"proc/sys/user/max_user_namespaces":                "1000",
		"sys/fs/cgroup/cgroup.controllers":                 "cpuset cpu io memory pids",
		"proc/sys/fs/inotify/max_user_instances":           "8192",
		"proc/self/status":                                 "CapEff:\t000001ffffffffff\nSeccomp:\t0\nSeccomp_filters:\t0\n",
		"proc/sys/net/ipv4/ip_forward":                     "1",
		"proc/sys/net/bridge/bridge-nf-call-iptables":      "1",
		"etc/resolv.conf":                                  "nameserver 192.0.2.1\n",
		"etc/cni/net.d/10-x.conflist":                      "{}",
		"opt/cni/bin/bridge":                               "",
		"sys/module/apparmor/parameters/enabled":           "Y",
		"bin/apparmor_parser":                              "",
		"bin/containerd-shim-runc-v2":                      "",
		"var/lib/containerd/x":                             "",
		"run/containerd/" + bundleDir + "/default/c1/init": "",
		"proc/1234/cmdline":                                "/usr/bin/containerd-shim-runc-v2\x00-id\x00c1",
		"proc/1234/cwd":                                    "-> run/containerd/" + bundleDir + "/default/c1",
	}
}

func host(t *testing.T, changes map[string]string) Host {
	t.Helper()
	root := t.TempDir()
	files := healthy()
	for name, content := range changes {
		files[name] = content
	}
	for name, content := range files {
		if content == "remove" {
			continue
		}
		path := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			if target, ok := strings.CutPrefix(content, "-> "); ok {
				err = os.Symlink(filepath.Join(root, target), path)
			} else {
				err = os.WriteFile(path, []byte(content), 0o755)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Host{
		Root: root, DataDir: "var/lib/containerd", StateDir: "run/containerd", Path: filepath.Join(root, "bin"), CertsDir: "etc/certs.d",
		Live: func(namespace, id string) bool { return namespace == "default" && id == "c1" },
	}
}

func run(t *testing.T, h Host) []Result {
	t.Helper()
	// The disk and the system calls are those of the machine that runs the test.
	return slices.DeleteFunc(Run(t.Context(), h), func(r Result) bool { return r.Area == "disk" || r.Area == "kernel" && strings.Contains(r.Check, "_") })
}

func TestHealthyHost(t *testing.T) {
	for _, r := range run(t, host(t, nil)) {
		if r.Status != OK && r.Status != Info {
			t.Errorf("%+v", r)
		}
	}
}

// Each fault is found, told with its status, and comes with what to do.
func TestFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		changes map[string]string
		status  Status
		want    string // in check, found or fix
	}{
		"old kernel":          {map[string]string{"proc/sys/kernel/osrelease": "3.10.0-1160.el7\n"}, Problem, "older than 4.18"},
		"aging kernel":        {map[string]string{"proc/sys/kernel/osrelease": "5.4.0\n"}, Warning, "idmapped"},
		"strange kernel":      {map[string]string{"proc/sys/kernel/osrelease": "unknown\n"}, Warning, "cannot be understood"},
		"no overlay":          {map[string]string{"proc/filesystems": "nodev\tproc\n"}, Problem, "modprobe overlay"},
		"no net namespace":    {map[string]string{"proc/self/ns/net": "remove"}, Problem, "has no net"},
		"no user namespaces":  {map[string]string{"proc/sys/user/max_user_namespaces": "0"}, Warning, "user.max_user_namespaces"},
		"no cgroups":          {map[string]string{"sys/fs/cgroup/cgroup.controllers": "remove"}, Problem, "mount -t cgroup2"},
		"no memory cgroup":    {map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpu io pids cpuset"}, Problem, "missing: memory"},
		"memory off":          {map[string]string{"proc/cmdline": "quiet cgroup_disable=memory"}, Problem, "cgroup_disable"},
		"few inotify":         {map[string]string{"proc/sys/fs/inotify/max_user_instances": "128"}, Warning, "sysctl -w fs.inotify.max_user_instances=8192"},
		"no SYS_ADMIN":        {map[string]string{"proc/self/status": "CapEff:\t00000000a80425fb\nSeccomp:\t0\n"}, Problem, "CAP_SYS_ADMIN"},
		"no seccomp":          {map[string]string{"proc/self/status": "CapEff:\t000001ffffffffff\n"}, Warning, "CONFIG_SECCOMP_FILTER"},
		"no apparmor_parser":  {map[string]string{"bin/apparmor_parser": "remove"}, Warning, "apt-get install apparmor"},
		"no CNI plugins":      {map[string]string{"opt/cni/bin/bridge": "remove"}, Problem, "containernetworking-plugins"},
		"CNI elsewhere":       {map[string]string{"opt/cni/bin/bridge": "remove", "usr/lib/cni/bridge": ""}, Warning, "ln -s /usr/lib/cni"},
		"no forwarding":       {map[string]string{"proc/sys/net/ipv4/ip_forward": "0"}, Warning, "net.ipv4.ip_forward=1"},
		"no br_netfilter":     {map[string]string{"proc/sys/net/bridge/bridge-nf-call-iptables": "remove"}, Warning, "modprobe br_netfilter"},
		"no name server":      {map[string]string{"etc/resolv.conf": "search x\n"}, Warning, "nameserver ADDRESS"},
		"no shim":             {map[string]string{"bin/containerd-shim-runc-v2": "remove"}, Problem, "nor on the PATH"},
		"broken hosts.toml":   {map[string]string{"etc/certs.d/x/hosts.toml": "server = "}, Problem, "hosts.toml"},
		"strange registry":    {map[string]string{"etc/certs.d/x/hosts.toml": "server = 'https://'"}, Warning, "not an address"},
		"bundle without shim": {map[string]string{"run/containerd/" + bundleDir + "/default/c2/init": ""}, Warning, "c2 belongs to no running shim"},
		"unknown shim": {map[string]string{
			"run/containerd/" + bundleDir + "/default/c3/init": "", "proc/77/cmdline": "containerd-shim-runc-v2", "proc/77/cwd": "-> run/containerd/" + bundleDir + "/default/c3",
		}, Warning, "process 77 runs for default/c3, of which the daemon does not know"},
		"shim without bundle": {map[string]string{
			"proc/78/cmdline": "containerd-shim-x", "proc/78/cwd": "-> run/containerd/" + bundleDir + "/default/c4 (deleted)",
		}, Warning, "kill 78"},
		"empty cgroup": {map[string]string{"sys/fs/cgroup/default/c5/cgroup.procs": ""}, Info, "default/c5"},
	} {
		t.Run(name, func(t *testing.T) {
			results := run(t, host(t, tc.changes))
			for _, r := range results {
				if r.Status == tc.status && strings.Contains(r.Check+" "+r.Found+" "+r.Fix, tc.want) {
					return
				}
			}
			t.Errorf("no %s with %q in %+v", tc.status, tc.want, results)
		})
	}
}

func TestStaleMount(t *testing.T) {
	h := host(t, nil)
	mountinfo := "1 2 0:1 / " + filepath.Join(h.Root, h.StateDir, bundleDir) + "/default/gone/rootfs rw - overlay overlay rw\n" +
		"1 2 0:1 / " + filepath.Join(h.Root, h.StateDir, bundleDir) + "/default/c1/rootfs rw - overlay overlay rw\n" +
		"1 2 0:1 / " + filepath.Join(h.Root, h.DataDir, "tmpmounts/containerd-mount123") + " rw - overlay overlay rw\n" +
		"1 2 0:1 / /tmp/containerd-mount456 rw - overlay overlay rw\n"
	if err := os.WriteFile(h.path("proc/self/mountinfo"), []byte(mountinfo), 0o600); err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, r := range run(t, h) {
		if r.Check == "mount" {
			found = append(found, r.Found)
		}
	}
	if len(found) != 2 || !strings.Contains(found[0], "/default/gone/rootfs is mounted") || !strings.Contains(found[1], "temporary mounts: 1") {
		t.Errorf("%q", found)
	}
}

func TestProbe(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	defer plain.Close()
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for _, tc := range []struct {
		s      server
		status Status
		want   string
	}{
		{server{plain.URL, false}, OK, "answers in"},
		{server{secure.URL, true}, OK, "answers in"},
		{server{secure.URL, false}, Info, "does not trust"},
		{server{gone.URL, false}, Warning, "does not answer"},
		{server{"http://no-such-host.invalid", false}, Warning, "cannot be looked up"},
	} {
		if r := probe(context.Background(), tc.s); r.Status != tc.status || !strings.Contains(r.Found, tc.want) {
			t.Errorf("%v: %+v, want %s with %q", tc.s, r, tc.status, tc.want)
		}
	}
}

func TestConfiguredServers(t *testing.T) {
	h := host(t, map[string]string{
		"etc/certs.d/docker.io/hosts.toml": "server = \"https://registry-1.docker.io\"\n[host.\"https://mirror.example.com/v2\"]\n  capabilities = [\"pull\"]\n[host.\"http://127.0.0.1:5000\"]\n  skip_verify = true\n",
	})
	servers, problems := configuredServers(h.path("etc/certs.d"))
	want := []server{{"http://127.0.0.1:5000", true}, {"https://mirror.example.com/v2", false}, {"https://registry-1.docker.io", false}}
	if !slices.Equal(servers, want) || problems != nil {
		t.Errorf("%v, %v", servers, problems)
	}
}
