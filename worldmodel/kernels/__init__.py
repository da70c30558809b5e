"""Speed code and numerical kernels. The only room for private parts of torch; each has a plain twin."""
