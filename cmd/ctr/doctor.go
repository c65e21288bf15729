package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"berth/cmd/ctr/doctor"
	"berth/cmd/ctr/output"
	"berth/internal/config"
	"berth/internal/version"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/types/known/emptypb"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "Check whether this host is fit for running containers", ArgsUsage: "[flags]",
		Description: "Looks at the kernel, cgroups, limits, networking, disks, what earlier containers left behind, the configured registries and the daemon, which may be " +
			"down, and says how to mend what is wrong. Nothing is changed. Exit status 1 means that something will not work.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "The daemon's configuration file; that of the running daemon if not given, else " + config.DefaultPath},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "Leave out what is as it should be"},
			&cli.BoolFlag{Name: "skip-registries", Usage: "Do not ask the configured registries"},
			formatFlag(),
		},
		Action: doctorAction,
	}
}

// doctorTime bounds the whole examination.
const doctorTime = 30 * time.Second

func doctorAction(ctx context.Context, cmd *cli.Command) error {
	if err := noArgs(cmd); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, doctorTime)
	defer cancel()
	started := runningDaemon(ctx, cmd)
	if cmd.IsSet("config") {
		started = daemonFlags{config: cmd.String("config"), programs: started.programs}
	}
	cfg, results := examineConfig(started)
	if !cmd.IsSet("address") {
		if err := cmd.Root().Set("address", cfg.Plugins.GRPC.Address); err != nil {
			return err
		}
	}
	host := doctor.Host{Root: "/", DataDir: cfg.Root, StateDir: cfg.State, Path: searchPath(started.programs)}
	if !cmd.Bool("skip-registries") {
		host.CertsDir = cfg.Plugins.Transfer.ConfigPath
		if host.CertsDir == "" {
			host.CertsDir = "/etc/containerd/certs.d"
		}
	}
	found, live := examineDaemon(ctx, cmd)
	host.Live = live
	results = append(results, found...)
	results = append(doctor.Run(ctx, host), results...)
	problems := 0
	var shown []doctor.Result
	for _, r := range results {
		if r.Status == doctor.Problem {
			problems++
		}
		if r.Status != doctor.OK || !cmd.Bool("quiet") {
			shown = append(shown, r)
		}
	}
	if err := printResults(cmd.String("format"), shown); err != nil {
		return err
	}
	switch problems {
	case 0:
		return nil
	case 1:
		return errors.New("there is 1 problem")
	}
	return fmt.Errorf("there are %d problems", problems)
}

// searchPath is where the daemon finds programs: beside itself first. While it does
// not run, that is taken to be beside ctr.
func searchPath(programs string) string {
	if programs == "" {
		if exe, err := os.Executable(); err == nil {
			programs = filepath.Dir(exe)
		}
	}
	return programs + string(filepath.ListSeparator) + os.Getenv("PATH")
}

func printResults(format string, results []doctor.Result) error {
	if format != "" && format != "table" {
		return output.List(format, results, output.Narrow, "", nil)
	}
	area := ""
	for _, r := range results {
		if r.Area != area {
			area = r.Area
			output.Line("%s", area)
		}
		output.Line("  %-8s %s: %s", r.Status, r.Check, r.Found)
		if r.Fix != "" {
			output.Line("           → %s", r.Fix)
		}
	}
	return nil
}

// examineConfig reads the daemon's configuration; the defaults when there is none.
func examineConfig(started daemonFlags) (*config.Config, []doctor.Result) {
	path := cmp.Or(started.config, config.DefaultPath)
	result := func(status doctor.Status, found, fix string) []doctor.Result {
		return []doctor.Result{{Area: "daemon", Check: "configuration", Status: status, Found: found, Fix: fix}}
	}
	cfg, warnings, err := config.Load(path)
	found := result(doctor.OK, path, "")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		cfg, found = config.Default(), result(doctor.OK, path+" is not there: the defaults apply", "")
	case err != nil:
		cfg, found = config.Default(), result(doctor.Problem, output.Message(err.Error()), "mend the file; 'containerd config check' looks again")
	case len(warnings) > 0:
		var lines []string
		for _, w := range warnings {
			lines = append(lines, w.String())
		}
		found = result(doctor.Warning, strings.Join(lines, "; "), "'containerd config check' tells more")
	}
	cfg.Root, cfg.State = cmp.Or(started.root, cfg.Root), cmp.Or(started.state, cfg.State)
	return cfg, found
}

// examineDaemon asks the daemon. live tells what it has, nil when it cannot be asked.
func examineDaemon(ctx context.Context, cmd *cli.Command) (results []doctor.Result, live func(namespace, id string) bool) {
	add := func(check string, status doctor.Status, found, fix string) {
		results = append(results, doctor.Result{Area: "daemon", Check: check, Status: status, Found: found, Fix: fix})
	}
	address := cmd.String("address")
	if st, err := os.Stat(address); err == nil && st.Mode().Perm()&0o007 != 0 {
		add("socket", doctor.Problem, fmt.Sprintf("%s is open to everybody (mode %o), and with it root on this host", address, st.Mode().Perm()), "chmod 600 "+address)
	}
	ctx, s, end, err := connect(ctx, cmd)
	if err != nil {
		found, fix := output.Message(err.Error()), ""
		if e, ok := errors.AsType[unreachable](err); ok {
			found, fix = e.reason, e.advice
		}
		add("socket", doctor.Warning, fmt.Sprintf("%s: %s", address, found), fix)
		return results, nil
	}
	defer end()
	start := time.Now()
	v, err := versionapi.NewVersionClient(s).Version(ctx, &emptypb.Empty{})
	if err != nil {
		add("socket", doctor.Problem, fmt.Sprintf("%s: the daemon does not answer: %v", address, output.Message(err.Error())), "look into its log: journalctl -u containerd")
		return results, nil
	}
	add("socket", doctor.OK, fmt.Sprintf("%s answers in %s, version %s", address, time.Since(start).Round(time.Microsecond), v.Version), "")
	if v.Version != version.Version {
		add("version", doctor.Info, fmt.Sprintf("the daemon is %s, this ctr is %s", v.Version, version.Version), "")
	}
	plugins, err := introspectionapi.NewIntrospectionClient(s).Plugins(ctx, &introspectionapi.PluginsRequest{})
	for _, p := range plugins.GetPlugins() {
		if p.InitErr != nil && !strings.Contains(p.InitErr.Message, "skip plugin") {
			add("plugin", doctor.Warning, fmt.Sprintf("%s.%s failed to start: %s", p.Type, p.ID, p.InitErr.Message), "")
		}
	}
	if err != nil {
		add("plugin", doctor.Warning, "the daemon does not list its plugins: "+output.Message(err.Error()), "")
	}
	server, err := introspectionapi.NewIntrospectionClient(s).Server(ctx, &emptypb.Empty{})
	if err == nil {
		for _, d := range server.Deprecations {
			add("deprecated", doctor.Info, d.Message, "")
		}
	}
	return results, livingOf(ctx, s)
}

// livingOf lists tasks and sandboxes of all namespaces once.
func livingOf(ctx context.Context, s *session) func(namespace, id string) bool {
	known := map[topKey]bool{}
	for _, ns := range namespaceNames(ctx, s) {
		ctx := withNamespace(ctx, ns)
		for _, id := range append(taskIDs(ctx, s), sandboxIDs(ctx, s)...) {
			known[topKey{ns, id}] = true
		}
	}
	return func(namespace, id string) bool { return known[topKey{namespace, id}] }
}
