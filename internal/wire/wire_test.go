package wire

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/object"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestToStatus(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{fmt.Errorf("image %q: %w", "a", errdefs.ErrNotFound), codes.NotFound, `image "a": not found`},
		{fmt.Errorf("name %q: %w", "a", errdefs.ErrAlreadyExists), codes.AlreadyExists, `name "a": already exists`},
		{fmt.Errorf("namespace is required: %w", errdefs.ErrFailedPrecondition), codes.FailedPrecondition, "namespace is required: failed precondition"},
		{fmt.Errorf("id: %w", errdefs.ErrInvalidArgument), codes.InvalidArgument, "id: invalid argument"},
		{fmt.Errorf("shim: %w", errdefs.ErrUnavailable), codes.Unavailable, "shim: unavailable"},
		{fmt.Errorf("x: %w", errdefs.ErrNotImplemented), codes.Unimplemented, "x: not implemented"},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "wait: context deadline exceeded"},
		{fmt.Errorf("wait: %w", context.Canceled), codes.Canceled, "wait: context canceled"},
		{status.Error(codes.Aborted, "as it is"), codes.Aborted, "as it is"},
		{&os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, codes.ResourceExhausted, "write /x: no space left on device: resource exhausted"},
		{fmt.Errorf("commit: %w: %w", errdefs.ErrUnavailable, syscall.ENOSPC), codes.Unavailable, "commit: unavailable: no space left on device"},
		{errors.New("strange"), codes.Unknown, "strange"},
	} {
		st := status.Convert(ToStatus(tc.err))
		if len(st.Details()) > 0 {
			t.Errorf("ToStatus(%v) has details: clients repeat the message with them", tc.err)
		}
		if st.Code() != tc.code || st.Message() != tc.text {
			t.Errorf("ToStatus(%v) = %v %q, want %v %q", tc.err, st.Code(), st.Message(), tc.code, tc.text)
		}
	}
	if ToStatus(nil) != nil {
		t.Error("nil became an error")
	}
}

func TestFromStatusIsTheInverse(t *testing.T) {
	err := FromStatus(ToStatus(fmt.Errorf("image %q: %w", "a", errdefs.ErrNotFound)))
	if !errdefs.IsNotFound(err) || err.Error() != `image "a": not found` {
		t.Errorf("came back as %v", err)
	}
}

func TestStatusNumbers(t *testing.T) {
	for s, want := range map[object.TaskStatus]task.Status{
		object.TaskUnknown: task.Status_UNKNOWN,
		object.TaskCreated: task.Status_CREATED,
		object.TaskRunning: task.Status_RUNNING,
		object.TaskStopped: task.Status_STOPPED,
		object.TaskPaused:  task.Status_PAUSED,
		object.TaskPausing: task.Status_PAUSING,
		200:                task.Status_UNKNOWN,
	} {
		if got := StatusToProto(s); got != want {
			t.Errorf("StatusToProto(%v) = %v, want %v", s, got, want)
		}
		if s <= object.TaskPausing {
			if back := StatusFromProto(want); back != s {
				t.Errorf("StatusFromProto(%v) = %v, want %v", want, back, s)
			}
		}
	}
	for _, n := range []task.Status{-1, 6, 1 << 30} {
		if got := StatusFromProto(n); got != object.TaskUnknown {
			t.Errorf("StatusFromProto(%d) = %v, want unknown", n, got)
		}
	}
}

func TestProcessID(t *testing.T) {
	if id := ProcessToProto(object.Process{ContainerID: "c"}).ID; id != "c" {
		t.Errorf("init process has ID %q, want that of its container", id)
	}
	if id := ProcessToProto(object.Process{ContainerID: "c", ExecID: "e"}).ID; id != "e" {
		t.Errorf("exec process has ID %q, want its own", id)
	}
	// A process that runs has the zero time as its exit, not none: clients of
	// containerd read it without a look.
	if at := ProcessToProto(object.Process{}).ExitedAt; at == nil || at.Seconds != -62135596800 {
		t.Errorf("exit time of a running process is %v", at)
	}
}

func TestNilMessages(t *testing.T) {
	if got := DescriptorFromProto(nil); !reflect.DeepEqual(got, ispec.Descriptor{}) {
		t.Errorf("descriptor of nil: %v", got)
	}
	if got := EventFromProto(nil); !got.Timestamp.IsZero() || got.Topic != "" {
		t.Errorf("event of nil: %v", got)
	}
	if AnyFromProto(nil) != nil || AnyToProto(nil) != nil {
		t.Error("Any of nil is something")
	}
	if got := MountsFromProto(nil); len(got) != 0 {
		t.Errorf("mounts of nil: %v", got)
	}
	MountsFromProto(append(MountsToProto(nil), nil))
	ProcessInfosFromProto([]*task.ProcessInfo{nil})
}

// FuzzRoundTrip turns objects into messages and back.
func FuzzRoundTrip(f *testing.F) {
	f.Add("overlay", "src", "a,b,c", int64(5), uint32(7), []byte("value"))
	f.Add("", "", "", int64(-1), uint32(0), []byte(nil))
	f.Fuzz(func(t *testing.T, a, b, list string, n int64, u uint32, value []byte) {
		strs := strings.Split(list, ",")
		at := time.Unix(n%(1<<33), int64(u%1e9)).UTC()
		same := func(what string, got, want any) {
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %#v became %#v", what, want, got)
			}
		}
		mounts := []object.Mount{{Type: a, Source: b, Target: list, Options: strs}}
		same("mounts", MountsFromProto(MountsToProto(mounts)), mounts)
		any := &object.Any{TypeURL: a, Value: value}
		same("Any", AnyFromProto(AnyToProto(any)), any)
		desc := ispec.Descriptor{MediaType: a, Digest: digest.Digest(b), Size: n, Annotations: map[string]string{a: b}}
		same("descriptor", DescriptorFromProto(DescriptorToProto(desc)), desc)
		platform := ispec.Platform{OS: a, Architecture: b, Variant: list, OSVersion: a, OSFeatures: strs}
		same("platform", PlatformFromProto(PlatformToProto(platform)), platform)
		event := object.Event{Timestamp: at, Namespace: a, Topic: b, Body: *any}
		same("event", EventFromProto(EventToProto(event)), event)
		infos := []object.ProcessInfo{{PID: u, Info: any}, {PID: u}}
		same("process infos", ProcessInfosFromProto(ProcessInfosToProto(infos)), infos)
		same("time", TimeFromProto(TimeToProto(at)), at)
	})
}
