package content

// NameSize lets tests write ingests that get their name.
const NameSize = nameSize
