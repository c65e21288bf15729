package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"berth/cmd/ctr/output"
	"berth/internal/registry"
	"berth/internal/registry/dockerconfig"
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
	creds, err := credentials(cmd, ref)
	if err != nil {
		return nil, err
	}
	if creds != nil {
		st, err := s.openStream(ctx, "creds")
		if err != nil {
			return nil, err
		}
		r.AuthStream = st.id
		go answerCredentials(ctx, st, creds)
	}
	return &transfer.OCIRegistry{Reference: ref, Resolver: r}, nil
}

// answerCredentials answers the daemon's questions until the stream ends.
func answerCredentials(ctx context.Context, st *stream, creds registry.CredentialsFunc) {
	for {
		var req transfer.AuthRequest
		if st.receiveMessage(&req) != nil {
			return
		}
		found, err := creds(ctx, req.Reference, req.Host)
		if err != nil {
			// The registry is asked without: its answer is clearer than a stream that ends.
			output.Warn("%v", err)
		}
		answer := &transfer.AuthResponse{AuthType: transfer.AuthType_CREDENTIALS, Username: found.Username, Secret: found.Secret}
		switch {
		case found == registry.Credentials{}:
			answer.AuthType = transfer.AuthType_NONE
		case found.Username == "":
			answer.AuthType = transfer.AuthType_REFRESH
		}
		if st.sendMessage(answer) != nil {
			return
		}
	}
}

// credentials are those of --user and --refresh, or else those that docker login
// left for the registry of ref; nil when there are none. A password that is left
// out is asked for.
//
// Differs from containerd: its ctr does not look at docker's logins.
func credentials(cmd *cli.Command, ref string) (registry.CredentialsFunc, error) {
	always := func(c registry.Credentials) registry.CredentialsFunc {
		return func(context.Context, string, string) (registry.Credentials, error) { return c, nil }
	}
	if token := cmd.String("refresh"); token != "" {
		return always(registry.Credentials{Secret: token}), nil
	}
	user := cmd.String("user")
	if user == "" {
		return dockerCredentials(ref), nil
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
	return always(registry.Credentials{Username: name, Secret: password}), nil
}

// dockerCredentials looks logins up where docker keeps them, if there may be one.
func dockerCredentials(ref string) registry.CredentialsFunc {
	r, err := registry.ParseReference(ref)
	if err != nil {
		return nil
	}
	config, err := dockerconfig.Load(dockerconfig.Path())
	if err != nil {
		output.Warn("%v", err)
		return nil
	}
	if !config.Knows(r.Host) {
		return nil
	}
	return func(ctx context.Context, reference, host string) (registry.Credentials, error) {
		return config.Credentials(ctx, reference, host)
	}
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
