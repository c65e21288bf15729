package daemon

import (
	"context"
	"os"
	"strconv"
	"time"
)

// watchdogInterval is how often systemd wants a sign of life; 0 when it does
// not. It is told twice as often.
func watchdogInterval(get func(string) string) time.Duration {
	if pid := get("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	usec, err := strconv.ParseInt(get("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 || usec > int64(24*time.Hour/time.Microsecond) {
		return 0
	}
	return time.Duration(usec) * time.Microsecond
}

// watchdog gives signs of life while the daemon is: the database must answer,
// which all calls need.
func (d *Daemon) watchdog(interval time.Duration) {
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		if err := d.alive(interval / 2); err != nil {
			if d.life.Err() == nil {
				d.log.Error("no sign of life for systemd's watchdog", "error", err)
			}
		} else if err := notify("WATCHDOG=1"); err != nil {
			d.log.Warn("systemd's watchdog is not told", "error", err)
		}
		select {
		case <-tick.C:
		case <-d.life.Done():
			return
		}
	}
}

func (d *Daemon) alive(within time.Duration) error {
	ctx, cancel := context.WithTimeout(d.life, within)
	defer cancel()
	answered := make(chan error, 1)
	go func() {
		_, err := d.db.Namespaces().List(ctx)
		answered <- err
	}()
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
