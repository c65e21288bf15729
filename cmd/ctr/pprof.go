package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/urfave/cli/v3"
)

func pprofCommand() *cli.Command {
	debug := func(value uint) cli.Flag {
		return &cli.UintFlag{Name: "debug", Usage: "Debug pprof args", Value: value}
	}
	seconds := func(usage string, value time.Duration) cli.Flag {
		return &cli.DurationFlag{Name: "seconds", Aliases: []string{"s"}, Usage: usage, Value: value}
	}
	profile := func(name, usage, path string, flags ...cli.Flag) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, Flags: flags, Action: func(ctx context.Context, cmd *cli.Command) error {
			return fetchProfile(ctx, cmd, path)
		}}
	}
	return &cli.Command{
		Name:  "pprof",
		Usage: "Provide golang pprof outputs for containerd",
		Flags: []cli.Flag{&cli.StringFlag{Name: "debug-socket", Aliases: []string{"d"}, Usage: "Socket path for containerd's debug server", Value: "/run/containerd/debug.sock"}},
		Commands: []*cli.Command{
			profile("block", "Goroutine blocking profile", "block", debug(0)),
			profile("goroutines", "Dump goroutine stack dump", "goroutine", debug(2)),
			profile("heap", "Dump heap profile", "heap", debug(0)),
			profile("profile", "CPU profile", "profile", seconds("Duration for collection (seconds)", 30*time.Second), debug(0)),
			profile("threadcreate", "Goroutine thread creating profile", "threadcreate", debug(0)),
			profile("trace", "Collect execution trace", "trace", seconds("Trace time (seconds)", 5*time.Second), debug(0)),
		},
	}
}

// fetchProfile prints a profile that the daemon's debug socket serves.
func fetchProfile(ctx context.Context, cmd *cli.Command, name string) error {
	socket := cmd.String("debug-socket")
	query := url.Values{"debug": {strconv.FormatUint(uint64(cmd.Uint("debug")), 10)}}
	if d := cmd.Duration("seconds"); d > 0 {
		query.Set("seconds", strconv.FormatFloat(d.Seconds(), 'f', -1, 64))
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://./debug/pprof/"+name+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			return fmt.Errorf("cannot connect to the daemon's debug socket %s: %w: set [debug] address in its configuration", socket, op.Err)
		}
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the daemon's debug socket answered %s", resp.Status)
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
