"""Parts of `robo-razor compare`: from run directories to tables, figures, words and a page.

`load` reads, `arms` groups, `equal_success` and `analysis` compute, `tables` and `sentences` put
into words, `charts` and `page` make the page. The entry is `build`. Nothing here needs torch or an
environment but `videos`.
"""
