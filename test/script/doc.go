// Package script runs the txtar scripts of testdata/script over the real
// programs: each with a daemon of its own, once as it is written, and once
// with the daemon killed (SIGKILL) and started again before every ctr command.
//
// Beside testscript's own commands a script has:
//
//	daemon start|stop|kill|restart  the private daemon; ctr finds it by CONTAINERD_ADDRESS
//	ctr ARG...                      runs ctr (in the background: exec ctr ARG... &name&)
//	exits N COMMAND...              runs the command and wants that exit status
//	image [NAME]                    imports the busybox test image (default example.com/busybox:1)
//	registry                        starts a registry on loopback, $REGISTRY is its host:port
//	faulty start|private|tls        starts a registry in the test, $FAULTY is its host:port; it has app:1
//	faulty well|FAULT               how that registry answers from now on
//	await COMMAND...                runs the command again until it succeeds (10 seconds at most)
//
// and the conditions [root], [overlay], [restarts] (in the second of the two
// runs), [berth-daemon] and [berth-ctr]. BERTH_BIN names a directory with
// programs to test in place of those that are built from the tree, BERTH_CTR
// another ctr: so the pairings of test/compat run the same scripts.
package script
