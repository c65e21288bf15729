package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"berth/cmd/ctr/output"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/urfave/cli/v3"
)

func metricsAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "container id"); err != nil {
		return err
	}
	format := cmd.String("format")
	id := cmd.Args().First()
	resp, err := tasksapi.NewTasksClient(s).Metrics(ctx, &tasksapi.MetricsRequest{Filters: []string{"id==" + id}})
	if err != nil {
		return err
	}
	if len(resp.Metrics) == 0 {
		// The daemon leaves tasks out that it cannot ask; find out why.
		if _, err := s.process(id, "").state(ctx); err != nil {
			return err
		}
		return fmt.Errorf("the daemon has no metrics of task %s", id)
	}
	m := resp.Metrics[0]
	data := decodeAny(m.Data)
	if format == "json" {
		b, err := json.MarshalIndent(data, "", "  ")
		if err != nil {
			return err
		}
		output.Line("%s", b)
		return nil
	}
	if format != "table" {
		return output.One(format, data)
	}
	w := output.Spaced.Table(os.Stdout)
	fmt.Fprintf(w, "ID\tTIMESTAMP\t\n%s\t%s\t\n\n", m.ID, m.Timestamp)
	fmt.Fprintf(w, "METRIC\tVALUE\t\n")
	row := func(name string, value any) { fmt.Fprintf(w, "%s\t%v\t\n", name, value) }
	switch d := data.(type) {
	case *v1.Metrics:
		if d.Memory != nil {
			row("memory.usage_in_bytes", d.Memory.GetUsage().GetUsage())
			row("memory.limit_in_bytes", d.Memory.GetUsage().GetLimit())
			row("memory.stat.cache", d.Memory.TotalCache)
		}
		if d.CPU != nil {
			row("cpuacct.usage", d.CPU.GetUsage().GetTotal())
			row("cpuacct.usage_percpu", d.CPU.GetUsage().GetPerCPU())
		}
		if d.Pids != nil {
			row("pids.current", d.Pids.Current)
			row("pids.limit", d.Pids.Limit)
		}
	case *v2.Metrics:
		if d.Pids != nil {
			row("pids.current", d.Pids.Current)
			row("pids.limit", d.Pids.Limit)
		}
		if d.CPU != nil {
			row("cpu.usage_usec", d.CPU.UsageUsec)
			row("cpu.user_usec", d.CPU.UserUsec)
			row("cpu.system_usec", d.CPU.SystemUsec)
			row("cpu.nr_periods", d.CPU.NrPeriods)
			row("cpu.nr_throttled", d.CPU.NrThrottled)
			row("cpu.throttled_usec", d.CPU.ThrottledUsec)
		}
		if d.Memory != nil {
			row("memory.usage", d.Memory.Usage)
			row("memory.usage_limit", d.Memory.UsageLimit)
			row("memory.swap_usage", d.Memory.SwapUsage)
			row("memory.swap_limit", d.Memory.SwapLimit)
		}
	default:
		return fmt.Errorf("task %s has metrics of the unknown type %s", id, m.Data.GetTypeUrl())
	}
	return w.Flush()
}
