package metrics

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"berth/internal/object"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// fill gives every number of a message a value, and lists an element.
func fill(m protoreflect.Message, next *uint64) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			fill(m.Mutable(f).List().AppendMutable().Message(), next)
		case f.IsList():
			m.Mutable(f).List().Append(protoreflect.ValueOfUint64(7))
		case f.Kind() == protoreflect.MessageKind:
			fill(m.Mutable(f).Message(), next)
		case f.Kind() == protoreflect.Uint64Kind:
			*next++
			m.Set(f, protoreflect.ValueOfUint64(*next))
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString("s"))
		}
	}
}

func collect(t *testing.T, c *Containers) string {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	c.Collect(t.Context(), w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestFieldsExist: every family finds its field, and has a value of its own.
func TestFieldsExist(t *testing.T) {
	for name, tc := range map[string]struct {
		m        proto.Message
		fields   []field
		families int
	}{
		"v1": {&v1.Metrics{}, fieldsV1(), 67},
		"v2": {&v2.Metrics{}, fieldsV2(), 48},
	} {
		t.Run(name, func(t *testing.T) {
			next := uint64(100)
			fill(tc.m.ProtoReflect(), &next)
			seen := map[float64]string{}
			for _, f := range tc.fields {
				v, ok := lookup(tc.m.ProtoReflect(), f.path)
				if !ok || v == 0 {
					t.Errorf("%s: no field %s", f.name, f.path)
				}
				if seen[v] != "" {
					t.Errorf("%s and %s have one field", f.name, seen[v])
				}
				seen[v] = f.name
			}
			data, err := proto.Marshal(tc.m)
			if err != nil {
				t.Fatal(err)
			}
			c := &Containers{
				List: func(context.Context) ([]Container, error) {
					return []Container{{"ns", "b\"", "rt"}, {"ns", "a", "rt"}}, nil
				},
				Stats: func(context.Context, string, string) (object.Any, time.Time, error) {
					return object.Any{TypeURL: "io.containerd.cgroups." + name + ".Metrics", Value: data}, time.Now(), nil
				},
				Timeout: func() time.Duration { return time.Minute },
				Log:     slog.New(slog.DiscardHandler),
			}
			out := collect(t, c)
			if n := strings.Count(out, "# TYPE"); n != tc.families {
				t.Errorf("%d families, want %d:\n%s", n, tc.families, out)
			}
			if !strings.Contains(out, `container_pids_current{container_id="b\"",namespace="ns",runtime="rt"} `) {
				t.Errorf("no escaped label:\n%s", out)
			}
		})
	}
}

// TestHungShim: one shim that hangs, even deaf to its context, holds up a
// scrape no longer than the timeout and hides nobody.
func TestHungShim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, err := proto.Marshal(&v2.Metrics{Pids: &v2.PidsStat{Current: 3}})
		if err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		c := &Containers{
			List: func(context.Context) ([]Container, error) {
				list := []Container{{"ns", "deaf", "rt"}}
				for i := range 50 {
					list = append(list, Container{"ns", fmt.Sprint("hung", i), "rt"}, Container{"ns", fmt.Sprint("good", i), "rt"})
				}
				return list, nil
			},
			Stats: func(ctx context.Context, _, id string) (object.Any, time.Time, error) {
				switch {
				case id == "deaf":
					<-release
				case strings.HasPrefix(id, "hung"):
					<-ctx.Done()
					return object.Any{}, time.Time{}, ctx.Err()
				}
				return object.Any{TypeURL: "x/io.containerd.cgroups.v2.Metrics", Value: data}, time.Now(), nil
			},
			Timeout: func() time.Duration { return 2 * time.Second },
			Log:     slog.New(slog.DiscardHandler),
		}
		begin := time.Now()
		out := collect(t, c)
		if took := time.Since(begin); took != 2*time.Second {
			t.Errorf("took %s", took)
		}
		if n := strings.Count(out, "container_pids_current{"); n != 50 {
			t.Errorf("%d containers, want the 50 that answer", n)
		}
		close(release)
	})
}
