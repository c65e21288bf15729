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
	return &cli.Command{
		Name:     "pprof",
		Usage:    "Provide golang pprof outputs for containerd",
		Flags:    []cli.Flag{&cli.StringFlag{Name: "debug-socket", Aliases: []string{"d"}, Usage: "Socket path for containerd's debug server", Value: "/run/containerd/debug.sock"}},
		Commands: profileCommands(daemonProfiles),
	}
}

// profileSource is a server of profiles: how to reach it, and what to call it in
// errors.
type profileSource func(cmd *cli.Command) (transport *http.Transport, name string, err error)

// profileCommands fetch the profiles of a Go program.
func profileCommands(from profileSource) []*cli.Command {
	profile := func(name, usage, path string, debug uint, seconds time.Duration) *cli.Command {
		flags := []cli.Flag{&cli.UintFlag{Name: "debug", Usage: "Output format, value = 0: binary, value > 0: plaintext", Value: debug}}
		if seconds > 0 {
			flags = append(flags, &cli.DurationFlag{Name: "seconds", Aliases: []string{"s"}, Usage: "Duration for collection (seconds)", Value: seconds})
		}
		return &cli.Command{Name: name, Usage: usage, Flags: flags, Action: func(ctx context.Context, cmd *cli.Command) error {
			return fetchProfile(ctx, cmd, from, path)
		}}
	}
	return []*cli.Command{
		profile("block", "Goroutine blocking profile", "block", 0, 0),
		profile("goroutines", "Print goroutine stack dump", "goroutine", 2, 0),
		profile("heap", "Dump heap profile", "heap", 0, 0),
		profile("profile", "CPU profile", "profile", 0, 30*time.Second),
		profile("threadcreate", "Goroutine thread creating profile", "threadcreate", 0, 0),
		profile("trace", "Collect execution trace", "trace", 0, 5*time.Second),
	}
}

func unixTransport(socket string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
}

// daemonProfiles asks the debug server of the daemon.
func daemonProfiles(cmd *cli.Command) (*http.Transport, string, error) {
	socket := cmd.String("debug-socket")
	return unixTransport(socket), "the daemon's debug socket " + socket + " (set [debug] address in its configuration)", nil
}

// fetchProfile prints a profile.
func fetchProfile(ctx context.Context, cmd *cli.Command, from profileSource, name string) error {
	transport, who, err := from(cmd)
	if err != nil {
		return err
	}
	defer transport.CloseIdleConnections()
	query := url.Values{"debug": {strconv.FormatUint(uint64(cmd.Uint("debug")), 10)}}
	if d := cmd.Duration("seconds"); d > 0 {
		query.Set("seconds", strconv.FormatFloat(d.Seconds(), 'f', -1, 64))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://./debug/pprof/"+name+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			return fmt.Errorf("cannot connect to %s: %w", who, op.Err)
		}
		return fmt.Errorf("%s does not answer as one: %w", who, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return fmt.Errorf("%s answered %s: %s", who, resp.Status, why)
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
