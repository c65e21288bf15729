// Package object is the vocabulary of Berth: the plain structs that its
// services, engines and stores exchange. It holds data only: no input or
// output, no protobuf, no locks. The wire form of each type is made in package
// wire, its disk form in package meta.
//
// Values are passed by value and treated as immutable once handed over; the
// receiver of a map or slice that it wants to change copies it first.
package object
