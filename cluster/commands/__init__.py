"""The commands of `condu`, one file each."""
