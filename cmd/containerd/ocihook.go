package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const hookUsage = `containerd oci-hook - run a command as an OCI hook, its arguments filled in

USAGE:
   containerd oci-hook COMMAND [ARG...] <STATE

The state of the container is JSON on standard input, as an OCI runtime gives it
to hooks. In arguments and environment these are replaced:
   {{id}} {{bundle}} {{rootfs}} {{pid}} {{status}} {{annotation "KEY"}}
`

// ociHook becomes the command in args, with the state of the container (JSON
// on stdin, as OCI hooks get it) filled into its arguments and environment:
// {{id}}, {{bundle}}, {{rootfs}}, {{pid}}, {{status}}, {{annotation "key"}}.
func ociHook(args []string, stdin io.Reader) error {
	if len(args) == 0 {
		return errors.New("oci-hook: name the command to run")
	}
	var state rspec.State
	if err := json.NewDecoder(stdin).Decode(&state); err != nil {
		return fmt.Errorf("oci-hook: state of the container on stdin: %w", err)
	}
	funcs, err := hookFuncs(state)
	if err != nil {
		return fmt.Errorf("oci-hook: %w", err)
	}
	argv, err := fill(args, funcs)
	if err != nil {
		return fmt.Errorf("oci-hook: argument %w", err)
	}
	env, err := fill(os.Environ(), funcs)
	if err != nil {
		return fmt.Errorf("oci-hook: environment %w", err)
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("oci-hook: %w", err)
	}
	return fmt.Errorf("oci-hook: run %s: %w", path, unix.Exec(path, argv, env))
}

func hookFuncs(state rspec.State) (template.FuncMap, error) {
	data, err := os.ReadFile(filepath.Join(state.Bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var spec struct {
		Root *rspec.Root `json:"root"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("config.json of %s: %w", state.Bundle, err)
	}
	rootfs := ""
	if spec.Root != nil {
		if rootfs = spec.Root.Path; !filepath.IsAbs(rootfs) {
			rootfs = filepath.Join(state.Bundle, rootfs)
		}
	}
	return template.FuncMap{
		"id":         func() string { return state.ID },
		"bundle":     func() string { return state.Bundle },
		"rootfs":     func() string { return rootfs },
		"pid":        func() int { return state.Pid },
		"status":     func() string { return string(state.Status) },
		"annotation": func(key string) string { return state.Annotations[key] },
	}, nil
}

func fill(list []string, funcs template.FuncMap) ([]string, error) {
	out := make([]string, len(list))
	for i, s := range list {
		if !strings.Contains(s, "{{") {
			out[i] = s
			continue
		}
		t, err := template.New("").Funcs(funcs).Parse(s)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", s, err)
		}
		var b strings.Builder
		if err := t.Execute(&b, nil); err != nil {
			return nil, fmt.Errorf("%q: %w", s, err)
		}
		out[i] = b.String()
	}
	return out, nil
}
