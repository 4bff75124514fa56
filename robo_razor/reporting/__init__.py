"""Parts of `robo-razor compare`: from run directories to tables, figures, words and a page.

`runs` reads, `arms` groups, `matching` and `analysis` compute, `tables` and `statement` put into
words, `charts` and `page` make the page. The entry is `robo_razor.report`. Nothing here needs torch
or an environment but `videos`.
"""
