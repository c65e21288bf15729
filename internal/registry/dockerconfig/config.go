// Package dockerconfig finds the logins that "docker login" and its like have
// left: in ~/.docker/config.json, or with the credential helpers named there.
//
// Format: a JSON object of which are read "auths" (by server: "auth", the base64
// of user:password, or "username" and "password", or "identitytoken"),
// "credHelpers" (a helper by server) and "credsStore" (one for all others). A
// helper NAME is the program docker-credential-NAME on the PATH: "get" with the
// server on its standard input prints an object of Username and Secret; the
// user name "<token>" marks an identity token.
//
// The file is its owner's, and a helper a program of theirs; still both are
// bounded in size, and a helper in time.
package dockerconfig

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"berth/internal/registry"

	"github.com/containerd/errdefs"
)

const (
	maxConfig  = 4 << 20
	maxAnswer  = 64 << 10
	helperTime = 30 * time.Second
)

// Config is a configuration of docker's. Its zero value knows no login.
type Config struct {
	Auths       map[string]auth   `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"`
	CredsStore  string            `json:"credsStore"`

	path string
}

type auth struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

// Path is where the configuration of this user is: config.json in
// $DOCKER_CONFIG or ~/.docker. Empty when there is no home.
func Path() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".docker", "config.json")
}

// Load reads a configuration; one that is not there is empty.
// errdefs.ErrInvalidArgument when it cannot be understood.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if path == "" || errors.Is(err, fs.ErrNotExist) {
		return &Config{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("docker's configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("docker's configuration: %w", err)
	}
	c, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c.path = path
	return c, nil
}

// Parse is Load of the bytes of a file.
func Parse(b []byte) (*Config, error) {
	if len(b) > maxConfig {
		return nil, fmt.Errorf("it is larger than %d bytes: %w", maxConfig, errdefs.ErrInvalidArgument)
	}
	c := &Config{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// dockerHub is the name under which logins of docker.io are kept.
const dockerHub = "https://index.docker.io/v1/"

// servers are the names under which a host's login may be kept, the usual first.
func servers(host string) []string {
	switch host {
	case "docker.io", "registry-1.docker.io", "index.docker.io":
		return []string{dockerHub, "index.docker.io", "docker.io", "registry-1.docker.io"}
	}
	return []string{host, "https://" + host, "http://" + host}
}

// Knows tells whether there may be a login for the host. It starts no helper.
func (c *Config) Knows(host string) bool {
	return c.CredsStore != "" || c.helper(host) != "" || c.entry(host) != (auth{})
}

// Credentials is a registry.CredentialsFunc: the login for a host, none when
// there is none.
func (c *Config) Credentials(ctx context.Context, _, host string) (registry.Credentials, error) {
	if name := c.helper(host); name != "" {
		return askHelper(ctx, name, servers(host)[0])
	}
	if c.CredsStore != "" {
		creds, err := askHelper(ctx, c.CredsStore, servers(host)[0])
		if err != nil || creds != (registry.Credentials{}) {
			return creds, err
		}
	}
	creds, err := c.entry(host).credentials()
	if err != nil {
		return creds, fmt.Errorf("%s: login for %s: %w", c.path, host, err)
	}
	return creds, nil
}

func (c *Config) helper(host string) string {
	for _, s := range servers(host) {
		if name := c.CredHelpers[s]; name != "" {
			return name
		}
	}
	return ""
}

func (c *Config) entry(host string) auth {
	for _, s := range servers(host) {
		if a, ok := c.Auths[s]; ok {
			return a
		}
	}
	for key, a := range c.Auths {
		_, rest, ok := strings.Cut(key, "://")
		if !ok {
			rest = key
		}
		if name, path, _ := strings.Cut(rest, "/"); name == host && (path == "" || path == "v1/" || path == "v2/" || path == "v1" || path == "v2") {
			return a
		}
	}
	return auth{}
}

func (a auth) credentials() (registry.Credentials, error) {
	if a.IdentityToken != "" {
		return registry.Credentials{Secret: a.IdentityToken}, nil
	}
	if a.Auth == "" {
		return registry.Credentials{Username: a.Username, Secret: a.Password}, nil
	}
	b, err := base64.StdEncoding.DecodeString(a.Auth)
	name, secret, ok := strings.Cut(string(b), ":")
	if err != nil || !ok {
		return registry.Credentials{}, fmt.Errorf("its \"auth\" is not the base64 of user:password: %w", errdefs.ErrInvalidArgument)
	}
	return registry.Credentials{Username: name, Secret: strings.TrimRight(secret, "\x00")}, nil
}

var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// askHelper runs a credential helper.
func askHelper(ctx context.Context, name, server string) (registry.Credentials, error) {
	program := "docker-credential-" + name
	if !helperName.MatchString(name) {
		return registry.Credentials{}, fmt.Errorf("credential helper %.100q is not a name: %w", name, errdefs.ErrInvalidArgument)
	}
	ctx, cancel := context.WithTimeout(ctx, helperTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "get")
	// With what it starts: a prompt that hangs must not outlive it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	out, said := &bounded{max: maxAnswer}, &bounded{max: 4 << 10}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(server), out, said
	err := cmd.Run()
	answer := strings.TrimSpace(string(out.kept))
	switch {
	case ctx.Err() != nil:
		return registry.Credentials{}, fmt.Errorf("credential helper %s did not answer: %w", program, context.Cause(ctx))
	case err != nil && strings.Contains(answer, "credentials not found"):
		return registry.Credentials{}, nil
	case err != nil:
		// What it prints may be a secret: only stderr and the known refusals are shown.
		return registry.Credentials{}, fmt.Errorf("credential helper %s for %s: %w %.200q: %w", program, server, err, strings.TrimSpace(string(said.kept)), errdefs.ErrUnauthenticated)
	case out.full:
		return registry.Credentials{}, fmt.Errorf("credential helper %s answered more than %d bytes: %w", program, maxAnswer, errdefs.ErrInvalidArgument)
	}
	var creds struct{ Username, Secret string }
	if json.Unmarshal(out.kept, &creds) != nil {
		return registry.Credentials{}, fmt.Errorf("credential helper %s: its answer is not JSON: %w", program, errdefs.ErrInvalidArgument)
	}
	if creds.Username == "<token>" {
		creds.Username = ""
	}
	return registry.Credentials{Username: creds.Username, Secret: creds.Secret}, nil
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	kept []byte
	max  int
	full bool
}

func (b *bounded) Write(p []byte) (int, error) {
	n := min(b.max-len(b.kept), len(p))
	b.kept, b.full = append(b.kept, p[:n]...), b.full || n < len(p)
	return len(p), nil
}
