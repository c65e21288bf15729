package api

import (
	"testing"

	events "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v2"
	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"
)

// pairs are the types with the generated ones that they must agree with.
func pairs() map[Message]proto.Message {
	return map[Message]proto.Message{
		&Empty{}:                 &emptypb.Empty{},
		&CreateTaskRequest{}:     &task.CreateTaskRequest{},
		&CreateTaskResponse{}:    &task.CreateTaskResponse{},
		&DeleteRequest{}:         &task.DeleteRequest{},
		&DeleteResponse{}:        &task.DeleteResponse{},
		&ExecProcessRequest{}:    &task.ExecProcessRequest{},
		&ResizePtyRequest{}:      &task.ResizePtyRequest{},
		&StateRequest{}:          &task.StateRequest{},
		&StateResponse{}:         &task.StateResponse{},
		&KillRequest{}:           &task.KillRequest{},
		&CloseIORequest{}:        &task.CloseIORequest{},
		&PidsRequest{}:           &task.PidsRequest{},
		&PidsResponse{}:          &task.PidsResponse{},
		&CheckpointTaskRequest{}: &task.CheckpointTaskRequest{},
		&UpdateTaskRequest{}:     &task.UpdateTaskRequest{},
		&StartRequest{}:          &task.StartRequest{},
		&StartResponse{}:         &task.StartResponse{},
		&WaitRequest{}:           &task.WaitRequest{},
		&WaitResponse{}:          &task.WaitResponse{},
		&StatsRequest{}:          &task.StatsRequest{},
		&StatsResponse{}:         &task.StatsResponse{},
		&ConnectRequest{}:        &task.ConnectRequest{},
		&ConnectResponse{}:       &task.ConnectResponse{},
		&ShutdownRequest{}:       &task.ShutdownRequest{},
		&PauseRequest{}:          &task.PauseRequest{},
		&ResumeRequest{}:         &task.ResumeRequest{},
		&TaskCreate{}:            &events.TaskCreate{},
		&TaskStart{}:             &events.TaskStart{},
		&TaskDelete{}:            &events.TaskDelete{},
		&TaskExit{}:              &events.TaskExit{},
		&TaskOOM{}:               &events.TaskOOM{},
		&TaskExecAdded{}:         &events.TaskExecAdded{},
		&TaskExecStarted{}:       &events.TaskExecStarted{},
		&TaskPaused{}:            &events.TaskPaused{},
		&TaskResumed{}:           &events.TaskResumed{},
		&TaskCheckpointed{}:      &events.TaskCheckpointed{},
		&ForwardRequest{}:        &ttrpcevents.ForwardRequest{},
		&Options{}:               &options.Options{},
		&CheckpointOptions{}:     &options.CheckpointOptions{},
		&ProcessDetails{}:        &options.ProcessDetails{},
		&RuntimeInfo{}:           &types.RuntimeInfo{},
	}
}

// fill sets every field of m, each to another value.
func fill(m protoreflect.Message, n *int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		*n++
		switch {
		case f.IsMap():
			entries := m.Mutable(f).Map()
			entries.Set(protoreflect.ValueOfString("key").MapKey(), protoreflect.ValueOfString("value"))
			entries.Set(protoreflect.ValueOfString("").MapKey(), protoreflect.ValueOfString(""))
		case f.IsList():
			list := m.Mutable(f).List()
			for range 3 {
				if f.Message() != nil {
					v := list.NewElement()
					fill(v.Message(), n)
					list.Append(v)
				} else {
					list.Append(scalar(f, *n))
				}
			}
		case f.Message() != nil:
			fill(m.Mutable(f).Message(), n)
		default:
			m.Set(f, scalar(f, *n))
		}
	}
}

func scalar(f protoreflect.FieldDescriptor, n int) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(string(rune('a'+n%26)) + "text")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{0, byte(n), 255})
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(1<<31 + n))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(1 + n%4))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(-n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(-n) << 33)
	default:
		panic(f.Kind())
	}
}

// What the generated type writes ours reads and writes again, and nothing is lost,
// neither by our codec nor by way of the protobuf runtime, as ttrpc uses it.
func TestAgreesWithGenerated(t *testing.T) {
	for ours, theirs := range pairs() {
		name := theirs.ProtoReflect().Descriptor().FullName()
		n := 0
		fill(theirs.ProtoReflect(), &n)
		raw, err := proto.Marshal(theirs)
		if err != nil {
			t.Fatal(err)
		}
		if err := proto.Unmarshal(raw, ours); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		again, err := proto.Marshal(ours)
		if err != nil || again == nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(again) != len(Marshal(ours)) {
			t.Errorf("%s: the two ways of encoding differ", name)
		}
		back := theirs.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(again, back); err != nil || !proto.Equal(back, theirs) {
			t.Errorf("%s: got %v,\nwant %v (%v)", name, back, theirs, err)
		}
		if e, ok := ours.(Event); ok && e.Name() != string(name) {
			t.Errorf("%s is called %s", name, e.Name())
		}
		// Decoding replaces what was there.
		if err := proto.Unmarshal(nil, ours); err != nil || len(Marshal(ours)) != 0 {
			t.Errorf("%s: something is left of the last message", name)
		}
	}
}

func TestNames(t *testing.T) {
	if got := string((&options.Options{}).ProtoReflect().Descriptor().FullName()); got != OptionsName {
		t.Error(got)
	}
	if got := string((&options.ProcessDetails{}).ProtoReflect().Descriptor().FullName()); got != ProcessDetailsName {
		t.Error(got)
	}
}

// FuzzDecode: hostile bytes end in an error or a message that survives a round.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(Marshal(&CreateTaskRequest{ID: "a", Rootfs: []*Mount{{Type: "bind", Options: []string{"ro"}}}, Options: &Any{TypeUrl: OptionsName, Value: []byte{8, 1}}}))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte{0x08, 0x01})
	f.Fuzz(func(t *testing.T, raw []byte) {
		for ours := range pairs() {
			if Unmarshal(raw, ours) != nil {
				continue
			}
			once := Marshal(ours)
			again := ours.ProtoReflect().Interface().(Message)
			again.(interface{ Reset() }).Reset()
			if err := Unmarshal(once, again); err != nil || len(Marshal(again)) != len(once) {
				t.Errorf("%T does not survive: %v", ours, err)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	raw := Marshal(&CreateTaskRequest{ID: "a", Bundle: "/run/bundle", Rootfs: []*Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/a:/b", "upperdir=/c"}}}})
	b.ReportAllocs()
	for b.Loop() {
		if err := Unmarshal(raw, new(CreateTaskRequest)); err != nil {
			b.Fatal(err)
		}
	}
}
