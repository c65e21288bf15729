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
//	registry [tls] [auth]           starts a registry on loopback, $REGISTRY is its host:port; its
//	                                certificate is in ca.pem, its user is me with the password secret
//	fake [private|tls]              starts a registry that can misbehave, $FAKE is its host:port; the user of a
//	                                private one is me with the password secret, $CA has the certificate of tls
//	fake METHOD PATH FAULT [N [TIMES]]
//	                                makes it: status N, hang N, silent, cut N, short N, corrupt N, drip N; an empty
//	                                METHOD or PATH is any, $LAYER the path of the last served image's first layer
//	fake well                       ends that
//	mkimage [-serve REPO:TAG] [-o FILE] [-c COMPRESSION] [-type TYPE] [-platforms LIST] [LAYER...]
//	                                builds an image of busybox and tars, or of layers such as :features (build_test.go)
//	terminal FILE COMMAND...        runs the command on a terminal and has the conversation of the file (terminal_test.go)
//	signal NAME                     sends the daemon a signal: HUP, USR1
//	ports NAME...                   sets variables to free addresses on loopback
//	get [-unix SOCKET] URL FILE     writes what a URL answers to the file
//	inherit NAME=ADDRESS...         hands listening sockets to the next daemon, as systemd does
//	notify FILE                     is systemd for the next daemon: what it is told is in the file
//	certs NAME...                   writes ca.pem, NAME.pem and NAME.key
//	dial ADDRESS [tls [NAME]]       calls the API over TCP, with the certificate of NAME
//	owner FILE MODE UID GID         compares
//	await COMMAND...                runs the command again until it succeeds (10 seconds at most)
//	shows PATTERN COMMAND...        runs it until its output matches, or with ! no longer does (10 seconds at most)
//
// and the conditions [root], [overlay], [restarts] (in the second of the two
// runs), [berth-daemon] and [berth-ctr]. BERTH_BIN names a directory with
// programs to test in place of those that are built from the tree, BERTH_CTR
// another ctr: so the pairings of test/compat run the same scripts.
package script
