"""What any detector has to beat: nearest neighbours and principal components."""
