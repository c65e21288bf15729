package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"berth/internal/wire"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/platforms"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
	"golang.org/x/term"
)

// registryFlags are those of commands that talk to a registry.
func registryFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "skip-verify", Aliases: []string{"k"}, Usage: "Skip SSL certificate validation"},
		&cli.BoolFlag{Name: "plain-http", Usage: "Allow connections using plain HTTP"},
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "User[:password] Registry user and password"},
		&cli.StringFlag{Name: "refresh", Usage: "Refresh token for authorization server"},
		&cli.StringFlag{Name: "hosts-dir", Usage: "Custom hosts configuration directory"},
		&cli.StringFlag{Name: "tlscacert", Usage: "Path to TLS root CA"},
		&cli.StringFlag{Name: "tlscert", Usage: "Path to TLS client certificate"},
		&cli.StringFlag{Name: "tlskey", Usage: "Path to TLS client key"},
		&cli.BoolFlag{Name: "http-dump", Usage: "Dump all HTTP request/responses when interacting with container registry"},
		&cli.BoolFlag{Name: "http-trace", Usage: "Enable HTTP tracing for registry interactions"},
	}
}

// needsLocal refuses flags that the transfer service has no field for, unless
// the transfer is one of ctr's own.
func needsLocal(cmd *cli.Command, names ...string) error {
	hints := map[string]string{
		"skip-verify": "set skip_verify in hosts.toml and name its directory with --hosts-dir",
		"tlscacert":   "set ca in hosts.toml and name its directory with --hosts-dir",
		"tlscert":     "set client in hosts.toml and name its directory with --hosts-dir",
		"tlskey":      "set client in hosts.toml and name its directory with --hosts-dir",
	}
	if cmd.Bool("local") {
		return nil
	}
	for _, name := range names {
		if !cmd.IsSet(name) {
			continue
		}
		if hint := hints[name]; hint != "" {
			return invalid("--%s needs --local; or %s", name, hint)
		}
		return invalid("--%s needs --local", name)
	}
	return nil
}

// registry describes the remote image ref, with the credentials and other
// settings that the flags give.
func (s *session) registry(ctx context.Context, cmd *cli.Command, ref string) (*transfer.OCIRegistry, error) {
	if ref == "" {
		return nil, invalid("an image reference must be provided, such as docker.io/library/alpine:latest")
	}
	r := &transfer.RegistryResolver{HostDir: cmd.String("hosts-dir")}
	if cmd.Bool("plain-http") {
		r.DefaultScheme = "http"
	}
	dump, trace := cmd.Bool("http-dump"), cmd.Bool("http-trace")
	switch {
	case dump && trace:
		r.HttpDebug = transfer.HTTPDebug_BOTH
	case dump:
		r.HttpDebug = transfer.HTTPDebug_DEBUG
	case trace:
		r.HttpDebug = transfer.HTTPDebug_TRACE
	}
	if dump || trace {
		st, err := s.openStream(ctx, "logs")
		if err != nil {
			return nil, err
		}
		r.LogsStream = st.id
		go st.receiveBytes(os.Stderr)
	}
	answer, err := credentials(cmd)
	if err != nil {
		return nil, err
	}
	if answer != nil {
		st, err := s.openStream(ctx, "creds")
		if err != nil {
			return nil, err
		}
		r.AuthStream = st.id
		go func() {
			for {
				var req transfer.AuthRequest
				if st.receiveMessage(&req) != nil || st.sendMessage(answer) != nil {
					return
				}
			}
		}()
	}
	return &transfer.OCIRegistry{Reference: ref, Resolver: r}, nil
}

// credentials are those of --user and --refresh, nil when there are none. A
// password that is left out is asked for.
func credentials(cmd *cli.Command) (*transfer.AuthResponse, error) {
	if token := cmd.String("refresh"); token != "" {
		return &transfer.AuthResponse{AuthType: transfer.AuthType_REFRESH, Secret: token}, nil
	}
	user := cmd.String("user")
	if user == "" {
		return nil, nil
	}
	name, password, ok := strings.Cut(user, ":")
	if !ok {
		if !term.IsTerminal(int(os.Stdin.Fd())) {
			return nil, invalid("--user %s has no password, and stdin is not a terminal to ask for it; write --user name:password", name)
		}
		fmt.Fprint(os.Stderr, "Password: ")
		b, err := term.ReadPassword(int(os.Stdin.Fd()))
		fmt.Fprintln(os.Stderr)
		if err != nil {
			return nil, fmt.Errorf("reading the password: %w", err)
		}
		password = string(b)
	}
	return &transfer.AuthResponse{AuthType: transfer.AuthType_CREDENTIALS, Username: name, Secret: password}, nil
}

// platformArgs reads --platform flags.
func platformArgs(values []string) ([]ispec.Platform, error) {
	var out []ispec.Platform
	for _, v := range values {
		p, err := platforms.Parse(v)
		if err != nil {
			return nil, invalid("--platform %s: %v", v, err)
		}
		out = append(out, p)
	}
	return out, nil
}

func platformsToProto(ps []ispec.Platform) []*types.Platform {
	out := make([]*types.Platform, len(ps))
	for i, p := range ps {
		out[i] = wire.PlatformToProto(p)
	}
	return out
}
