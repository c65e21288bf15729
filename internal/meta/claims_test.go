package meta

import "testing"

func TestClaimsWatch(t *testing.T) {
	var c claims
	ctx := t.Context()
	for _, k := range []string{"before", "held"} {
		if err := c.hold(ctx, k); err != nil {
			t.Fatal(err)
		}
	}
	c.release("before")
	since, end := c.watch()
	if err := c.hold(ctx, "meanwhile"); err != nil {
		t.Fatal(err)
	}
	c.release("meanwhile")
	c.release("held")
	for key, want := range map[string]bool{"before": true, "held": false, "meanwhile": false, "never": true} {
		if got := c.doom(key, since); got != want {
			t.Errorf("doom %s: %v, want %v", key, got, want)
		} else if got {
			c.pardon(key)
		}
	}
	end()
	since, end = c.watch()
	defer end()
	if !c.doom("meanwhile", since) || len(c.watches) != 1 {
		t.Error("a watch that has ended still counts")
	}
}
