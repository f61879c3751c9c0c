"""One exchange with one SGLang worker."""
