// Package archtest checks the rules of the house: which floor a package is on,
// who may import whom, that every package says what it owns, and the idioms
// that are forbidden with the reason why. It has tests only.
package archtest
