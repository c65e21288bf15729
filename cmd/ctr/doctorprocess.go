package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/types/known/emptypb"
)

// daemonFlags are those of a daemon's command line that tell which directories
// are its own, and the directory of its program. Those not given are empty.
type daemonFlags struct{ config, root, state, programs string }

// runningTime is how long a daemon may take to say who it is.
const runningTime = 2 * time.Second

// runningDaemon finds out with which flags the daemon was started that listens
// at the address; empty when none answers or it is on another host.
func runningDaemon(ctx context.Context, cmd *cli.Command) daemonFlags {
	// One that hangs is told of later, by who examines it, and is waited for there.
	ctx, cancel := context.WithTimeout(ctx, runningTime)
	defer cancel()
	ctx, s, end, err := connect(ctx, cmd)
	if err != nil {
		return daemonFlags{}
	}
	defer end()
	server, err := introspectionapi.NewIntrospectionClient(s).Server(ctx, &emptypb.Empty{})
	if err != nil {
		return daemonFlags{}
	}
	proc := fmt.Sprintf("/proc/%d", server.Pid)
	line, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return daemonFlags{}
	}
	dir, _ := os.Readlink(filepath.Join(proc, "cwd")) // without it, paths are as they are
	args := strings.Split(string(bytes.TrimSuffix(line, []byte{0})), "\x00")
	f := parseDaemonFlags(args[1:], dir)
	if exe, err := os.Readlink(filepath.Join(proc, "exe")); err == nil {
		f.programs = filepath.Dir(exe)
	}
	return f
}

// parseDaemonFlags understands "-f v", "--flag v" and "--flag=v". Paths are beneath
// dir unless they are absolute.
func parseDaemonFlags(args []string, dir string) (f daemonFlags) {
	targets := map[string]*string{"c": &f.config, "config": &f.config, "root": &f.root, "state": &f.state}
	for i, arg := range args {
		name, value, given := strings.Cut(arg, "=")
		bare := strings.TrimPrefix(strings.TrimPrefix(name, "-"), "-")
		to := targets[bare]
		if to == nil || bare == name {
			continue
		}
		if !given && i+1 < len(args) {
			value = args[i+1]
		}
		if value != "" && !filepath.IsAbs(value) {
			value = filepath.Join(dir, value)
		}
		*to = value
	}
	return f
}
