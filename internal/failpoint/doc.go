// Package failpoint names the moments at which a crash is tried out.
//
// A program calls Hit between the steps of whatever must survive its death:
//
//	failpoint.Hit("task.create.bundle-made")
//
// Without the build tag "failpoints" that is nothing at all, not even a call.
// With the tag, the environment variable BERTH_FAILPOINTS decides what happens,
// in this process and in those that inherit its environment. It is a list of
// actions, separated by semicolons:
//
//	name=kill           the process gets SIGKILL, and Hit does not return
//	name=error          Hit returns an error, for callers that look at it
//	name=delay:200ms    Hit returns after a while
//	name=hold:FIFO      Hit opens the FIFO and returns when its writer closes it:
//	                    a test knows by opening it that the moment has come
//	name@3=kill         the same, at the third hit in this process; without a
//	                    number kill and error happen at the first, delay at each
//	list=FILE           the name of every hit is appended to FILE, one on a line
//
// Names are <room>.<operation>.<what has just been done>, or end in
// "before-" and what is about to be done. A name that cannot be parsed ends the
// program at the first hit: a test with a misspelt action must not pass.
package failpoint
