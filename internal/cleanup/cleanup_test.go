package cleanup

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestOnError(t *testing.T) {
	first, second := errors.New("first"), errors.New("second")
	var order []string
	create := func(fail error) (err error) {
		var undo Stack
		defer undo.OnError(&err)
		undo.Add("one", func() error { order = append(order, "one"); return nil })
		undo.Add("two", func() error { order = append(order, "two"); return second })
		undo.Add("three", func() error { order = append(order, "three"); return nil })
		return fail
	}
	if err := create(nil); err != nil || order != nil {
		t.Fatalf("success undid %v, %v", order, err)
	}
	err := create(first)
	if !errors.Is(err, first) || errors.Is(err, second) || !strings.Contains(err.Error(), "two: second") {
		t.Fatalf("got %v", err)
	}
	if got := strings.Join(order, " "); got != "three two one" {
		t.Fatalf("undone in order %s", got)
	}
}

func TestRelease(t *testing.T) {
	var undo Stack
	undo.Add("x", func() error { t.Error("undone"); return nil })
	undo.Release()
	if err := undo.Run(); err != nil {
		t.Fatal(err)
	}
}

func TestContext(t *testing.T) {
	type key struct{}
	parent, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, 1))
	cancel()
	ctx, stop := Context(parent)
	defer stop()
	if ctx.Err() != nil || ctx.Value(key{}) != 1 {
		t.Fatal("context ended with its parent, or lost its values")
	}
	if _, ok := ctx.Deadline(); !ok {
		t.Fatal("no deadline")
	}
}
