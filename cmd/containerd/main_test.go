package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/config"

	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

func command(t *testing.T, stdin io.Reader, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	err = run(t.Context(), args, stdin, &out, &errs)
	return out.String(), errs.String(), err
}

func TestVersion(t *testing.T) {
	for _, flag := range []string{"--version", "-v"} {
		out, _, err := command(t, nil, flag)
		fields := strings.Fields(out)
		if err != nil || len(fields) < 3 || fields[0] != "containerd" || fields[1] != "berth" || !strings.HasPrefix(fields[2], "v") {
			t.Errorf("%s: %q, %v", flag, out, err)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"-h"}, {"help"}} {
		if out, _, err := command(t, nil, args...); err != nil || !strings.Contains(out, "--log-level") {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
}

func TestHelpOfCommands(t *testing.T) {
	for args, want := range map[string]string{
		"config": "migrate", "config --help": "migrate", "config dump --help": "migrate", "publish --help": "--topic", "oci-hook -h": "{{rootfs}}",
	} {
		if out, _, err := command(t, nil, strings.Fields(args)...); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %q, %v", args, out, err)
		}
	}
}

func TestMistakes(t *testing.T) {
	for _, tc := range []struct {
		args    []string
		message string
	}{
		{[]string{"--bogus"}, "bogus"},
		{[]string{"bogus"}, `no command "bogus"`},
		{[]string{"config", "dump", "more"}, `takes no argument, not "more"`},
		{[]string{"config", "dump", "--bogus"}, "bogus"},
		{[]string{"config", "bogus"}, `no command "bogus" of config`},
		{[]string{"-c", "/nowhere/config.toml"}, "/nowhere/config.toml"},
		{[]string{"-c", "/nowhere/config.toml", "config", "dump"}, "/nowhere/config.toml"},
		{[]string{"--log-level", "loud"}, `"loud"`},
		{[]string{"--root", "/x", "--state", "/x"}, "must be different"},
		{[]string{"publish"}, "--topic"},
		{[]string{"oci-hook"}, "name the command"},
	} {
		// Each fails before anything is touched.
		if _, _, err := command(t, strings.NewReader(""), tc.args...); err == nil || !strings.Contains(err.Error(), tc.message) {
			t.Errorf("%v: %v, want %q", tc.args, err, tc.message)
		}
	}
}

func TestConfigCommands(t *testing.T) {
	out, _, err := command(t, nil, "config", "default")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := config.Parse("default", []byte(out)); err != nil {
		t.Errorf("the default cannot be read: %v", err)
	}
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte("version = 2\ntypo = 1\n[grpc]\naddress = \"/file.sock\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, err := command(t, nil, "-c", path, "--root", "/flag/root", "config", "dump")
	if err != nil || !strings.Contains(out, "version = 4") || !strings.Contains(out, "root = '/flag/root'") || !strings.Contains(out, "address = '/file.sock'") {
		t.Errorf("dump: %v\n%s", err, out)
	}
	if !strings.Contains(errs, path+`:2:1: unknown key "typo"`) {
		t.Errorf("warnings: %q", errs)
	}
	out, _, err = command(t, nil, "-c", path, "-a", "/flag.sock", "config", "dump")
	if err != nil || !strings.Contains(out, "address = '/flag.sock.ttrpc'") {
		t.Errorf("dump with an address: %v\n%s", err, out)
	}
	if out, _, err := command(t, nil, "config", "-c", path, "dump", "--root", "/late"); err != nil || !strings.Contains(out, "root = '/late'") || !strings.Contains(out, "/file.sock") {
		t.Errorf("dump with flags behind the command: %v\n%s", err, out)
	}
	out, _, err = command(t, nil, "-c", path, "config", "migrate")
	if err != nil || !strings.Contains(out, "version = 4") {
		t.Errorf("migrate: %v\n%s", err, out)
	}
}

type eventSink struct {
	eventsapi.UnimplementedEventsServer
	got chan *eventsapi.PublishRequest
}

func (s eventSink) Publish(ctx context.Context, req *eventsapi.PublishRequest) (*emptypb.Empty, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	req.Topic += "@" + strings.Join(md["containerd-namespace"], ",")
	s.got <- req
	return &emptypb.Empty{}, nil
}

func TestPublish(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server, sink := grpc.NewServer(), eventSink{got: make(chan *eventsapi.PublishRequest, 1)}
	eventsapi.RegisterEventsServer(server, sink)
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	data, err := proto.Marshal(&anypb.Any{TypeUrl: "containerd.events.TaskOOM", Value: []byte{0x0a, 1, 'c'}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := command(t, bytes.NewReader(data), "--address", path, "publish", "--namespace", "ns", "--topic", "/tasks/oom"); err != nil {
		t.Fatal(err)
	}
	if got := <-sink.got; got.Topic != "/tasks/oom@ns" || got.Event.TypeUrl != "containerd.events.TaskOOM" {
		t.Errorf("got %v", got)
	}
	if _, _, err := command(t, strings.NewReader("\xff\xff"), "--address", path, "publish", "--topic", "/x"); err == nil {
		t.Error("published what is no event")
	}
}

func TestHookArguments(t *testing.T) {
	bundle := t.TempDir()
	spec, err := json.Marshal(rspec.Spec{Root: &rspec.Root{Path: "rootfs"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), spec, 0o600); err != nil {
		t.Fatal(err)
	}
	funcs, err := hookFuncs(rspec.State{ID: "c1", Pid: 7, Status: "created", Bundle: bundle, Annotations: map[string]string{"k": "v"}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := fill([]string{"plain", "{{id}}-{{pid}}", "{{rootfs}}", "{{bundle}}", "{{status}}", `{{annotation "k"}}{{annotation "none"}}`}, funcs)
	want := []string{"plain", "c1-7", filepath.Join(bundle, "rootfs"), bundle, "created", "v"}
	if err != nil || strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := fill([]string{"{{nothing}}"}, funcs); err == nil {
		t.Error("an unknown function was filled in")
	}
}
